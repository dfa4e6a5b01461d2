"""Entries of the registry files: reading, checking and editing YAML that people write too."""

import io
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import CommentMark, YAMLError
from ruamel.yaml.tokens import CommentToken
from ruamel.yaml.util import load_yaml_guess_indent

from ..errors import BucketRankError
from .files import write_atomically

_HEADER = "# Data sets of bucketrank. Edit freely, or use `bucketrank dataset add` and `remove`.\n"

Origin = Literal["embedded", "user", "project", "detectron2"]


@dataclass(frozen=True)
class DatasetEntry:
    """One split: where its JSON and its pictures are.

    With ``part`` and ``val_fraction`` set it is the training or the validation part of the JSON.
    Of Cityscapes, whose annotations are a file a picture, ``json`` is their folder.
    ``origin`` says where the name comes from, ``source`` which YAML file defines it, if one does.
    """

    name: str
    json: Path
    images: Path
    part: Literal["train", "val"] | None = None
    val_fraction: float | None = None
    origin: Origin = "user"
    source: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """The entry without ``source`` in plain types, for JSON; see :meth:`from_dict`."""
        paths = {"json": str(self.json), "images": str(self.images)}
        return {key: value for key, value in (asdict(self) | paths).items() if key != "source"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DatasetEntry":
        """The entry that :meth:`as_dict` gave."""
        return cls(**(values | {key: Path(values[key]) for key in ("json", "images")}))

    @property
    def is_users(self) -> bool:
        """Whether users have registered it; other data sets need no cleaning."""
        return self.origin in ("user", "project")

    @property
    def present(self) -> bool:
        """Whether its files are there; the embedded data set, made on first use, always is."""
        return self.origin == "embedded" or (self.json.exists() and self.images.is_dir())


def read_entries(
    path: Path | None, origin: Origin, reserved: Collection[str]
) -> dict[str, DatasetEntry]:
    """The entries of a registry file by name; none if there is no file.

    Raises:
        BucketRankError: if the file is malformed or an entry has a reserved name; says where.
    """
    if path is None or not path.is_file():
        return {}
    # "safe" gives plain types, the round-trip loader those of ruamel.yaml.
    entries = {}
    for name, fields in (_load(YAML(typ="safe", pure=True), path) or {}).items():
        if str(name) in reserved:
            raise _fault(name, path, "this name is built in, give it another one")
        entries[str(name)] = _entry(str(name), fields, path, origin)
    return entries


@contextmanager
def edited_registry(path: Path) -> Iterator[CommentedMap]:
    """The entries of a registry file, to be changed in place and written back at the end.

    Comments, quotes and indents stay. The file need not exist; it is locked meanwhile, and left
    alone where nothing changes.

    Raises:
        BucketRankError: if the file is malformed.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        loaded = _load(yaml, path) if path.is_file() else None
        text = path.read_text(encoding="utf-8") if path.is_file() else _HEADER
        entries = CommentedMap() if loaded is None else loaded
        _, yaml.map_indent, _ = load_yaml_guess_indent(text, yaml=YAML())
        before = dict(entries)
        yield entries
        if dict(entries) == before:
            return
        # ruamel.yaml has no place for comments without entries.
        comments = "".join(f"{line}\n" for line in text.splitlines() if line.startswith("#"))
        stream = io.StringIO()
        yaml.dump(entries, stream)
        above = "" if loaded else comments
        write_atomically(path, above + stream.getvalue() if entries else comments)


def drop_entry(entries: CommentedMap, name: str) -> None:
    """Removes an entry of a registry but not the comment lines below it."""
    key = next(key for key in entries if str(key) == name)
    following = list(entries)[list(entries).index(key) + 1 :]
    fields = entries.pop(key)
    # ruamel.yaml keeps a comment with the value that ends before it.
    marks = [entries.ca.items.pop(key, None), *fields.ca.items.values()]
    tokens = [mark[2] for mark in marks if mark and mark[2]]
    below = tokens[-1].value.partition("\n")[2] if tokens else ""
    if not below:
        return
    token = CommentToken(below, CommentMark(0))
    if following:
        mark = entries.ca.items.setdefault(following[0], [None, None, None, None])
        mark[1] = [token, *(mark[1] or [])]
    else:
        entries.ca.end.append(token)


def is_fraction(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _load(yaml: YAML, path: Path) -> Any:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = f"line {mark.line + 1}: {error.problem}" if mark else " ".join(str(error).split())
        raise BucketRankError(f"{path} is not valid YAML ({reason}). Mend or remove it.") from error
    if not isinstance(content, dict | None):
        raise BucketRankError(
            f"{path} must hold entries of the form 'NAME: {{json: F, images: D}}'."
        )
    return content


def _fault(name: str, path: Path, what: str) -> BucketRankError:
    return BucketRankError(f"Data set '{name}' in {path}: {what}.")


def _entry(name: str, fields: Any, path: Path, origin: Origin) -> DatasetEntry:
    if not isinstance(fields, dict) or not {"json", "images"} <= set(fields):
        raise _fault(name, path, "needs the keys 'json' and 'images'")
    unknown = set(fields) - {"json", "images", "val_fraction", "part"}
    if unknown:
        raise _fault(name, path, f"does not know the key '{sorted(map(str, unknown))[0]}'")
    fraction, part = fields.get("val_fraction"), fields.get("part")
    if (fraction is None) != (part is None):
        raise _fault(name, path, "'val_fraction' and 'part' go together")
    if part not in (None, "train", "val"):
        raise _fault(name, path, f"'part' must be train or val, not {part!r}")
    if fraction is not None and not is_fraction(fraction):
        raise _fault(name, path, f"'val_fraction' must lie between 0 and 1, not {fraction!r}")
    json_file, images = (
        Path(os.path.normpath(path.parent / Path(str(fields[key])).expanduser()))
        for key in ("json", "images")
    )
    return DatasetEntry(name, json_file, images, part, fraction, origin, source=path)
