"""Data sets by name: a YAML file that people can read and edit, and what is there without it.

The registry is ``datasets.yaml`` in ``$BUCKETRANK_HOME`` or ``~/.config/bucketrank``. A file
``bucketrank-datasets.yaml`` in the current folder or one above it comes first; its paths may be
relative to itself. One entry is one split::

    cells_train:
      json: /data/cells/train.json
      images: /data/cells/images

``val_fraction: 0.2`` with ``part: train`` or ``part: val`` holds out a fraction of the pictures of
one JSON; which ones depends on their file names alone. ``shapes_train`` and ``shapes_val`` are
always there, and so are the COCO, LVIS and Cityscapes names of Detectron2, whose files lie under
``$DETECTRON2_DATASETS`` (by default ``datasets`` in the current folder).
"""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock

from bucketed_ranking.data.files import config_folder, read_coco, write_atomically
from bucketed_ranking.data.shapes import annotations_file, ensure_shapes, shapes_folder
from bucketed_ranking.errors import BucketRankError

PROJECT_FILE = "bucketrank-datasets.yaml"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_HEADER = "# Data sets of bucketrank. Edit freely, or use `bucketrank dataset add` and `remove`.\n"

_DETECTRON2 = {
    "coco_2014_train": ("coco/annotations/instances_train2014.json", "coco/train2014"),
    "coco_2014_val": ("coco/annotations/instances_val2014.json", "coco/val2014"),
    "coco_2014_minival": ("coco/annotations/instances_minival2014.json", "coco/val2014"),
    "coco_2014_valminusminival": (
        "coco/annotations/instances_valminusminival2014.json",
        "coco/val2014",
    ),
    "coco_2017_train": ("coco/annotations/instances_train2017.json", "coco/train2017"),
    "coco_2017_val": ("coco/annotations/instances_val2017.json", "coco/val2017"),
    "coco_2017_val_100": ("coco/annotations/instances_val2017_100.json", "coco/val2017"),
    "lvis_v1_train": ("lvis/lvis_v1_train.json", "coco"),
    "lvis_v1_val": ("lvis/lvis_v1_val.json", "coco"),
    "lvis_v0.5_train": ("lvis/lvis_v0.5_train.json", "coco"),
    "lvis_v0.5_val": ("lvis/lvis_v0.5_val.json", "coco"),
    "cityscapes_fine_instance_seg_train": (
        "cityscapes/gtFine/train",
        "cityscapes/leftImg8bit/train",
    ),
    "cityscapes_fine_instance_seg_val": ("cityscapes/gtFine/val", "cityscapes/leftImg8bit/val"),
}
_ALIASES = {
    "coco": "coco_2017",
    "lvis": "lvis_v1",
    "cityscapes": "cityscapes_fine_instance_seg",
}
_EMBEDDED = {"shapes_train": "train", "shapes_val": "val"}

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
        """The entry in plain types, for JSON; see :meth:`from_dict`."""
        return {
            **{key: getattr(self, key) for key in ("name", "part", "val_fraction", "origin")},
            **{key: str(getattr(self, key)) for key in ("json", "images")},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DatasetEntry":
        """The entry that :meth:`as_dict` gave."""
        paths = {key: Path(values[key]) for key in ("json", "images")}
        return cls(**{**values, **paths})

    @property
    def present(self) -> bool:
        """Whether its files are there; the embedded data set, made on first use, always is."""
        return self.origin == "embedded" or (self.json.exists() and self.images.is_dir())


def registry_file() -> Path:
    """The user's registry; it need not exist."""
    return config_folder() / "datasets.yaml"


def project_file() -> Path | None:
    """The project's registry: in the current folder, or in the nearest one above that has one."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / PROJECT_FILE).is_file():
            return folder / PROJECT_FILE
    return None


def detectron2_root() -> Path:
    """Where Detectron2 looks for its own data sets."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser().absolute()


def list_datasets() -> list[DatasetEntry]:
    """Every name there is: the project's and the user's, then the embedded, then Detectron2's."""
    known = {**_read(registry_file(), "user"), **_read(project_file(), "project")}
    entries = dict(sorted(known.items()))
    for name in (*_EMBEDDED, *_DETECTRON2):
        entries.setdefault(name, _builtin(name))
    return list(entries.values())


def find_dataset(name: str) -> DatasetEntry:
    """The entry of a name; makes the embedded data set when its name is asked for first.

    Raises:
        BucketRankError: if there is no such name (the message names near ones), or if a registry
            file is malformed.
    """
    entries = {entry.name: entry for entry in list_datasets()}
    if name not in entries:
        raise BucketRankError(_unknown(name, entries))
    if entries[name].origin == "embedded":
        ensure_shapes()
    return entries[name]


def split_names(name: str) -> tuple[str, str]:
    """The training and the validation split of a data set: ``cells`` -> cells_train, cells_val.

    Raises:
        BucketRankError: if there is no such pair; says how to get one.
    """
    base = _ALIASES.get(name, name)
    pair = f"{base}_train", f"{base}_val"
    names = [entry.name for entry in list_datasets()]
    missing = [split for split in pair if split not in names]
    if not missing:
        return pair
    if name in names:
        for ending in ("_train", "_val"):
            stem = name.removesuffix(ending)
            if stem != name and {f"{stem}_train", f"{stem}_val"} <= set(names):
                raise BucketRankError(
                    f"'{name}' is one split; the data set is called '{stem}' (its splits are "
                    f"{stem}_train and {stem}_val)."
                )
        raise BucketRankError(
            f"Data set '{name}' has no validation split. Hold one out with `bucketrank dataset add "
            f"{name} --json F --images D --val-fraction 0.2 --force`, or name two data sets with "
            f"--train {name} --val OTHER."
        )
    if len(missing) == 1:
        raise BucketRankError(
            f"Data set '{name}' has no split '{missing[0]}'. Register it with `bucketrank dataset "
            f"add {missing[0]} --json F --images D`, or name two data sets with --train and --val."
        )
    raise BucketRankError(_unknown(name, {*names, *_pairs(names)}))


def members(name: str) -> list[DatasetEntry]:
    """The one entry of a name, or the two splits of a data set: what ``check`` and ``show`` take.

    Raises:
        BucketRankError: if the name is neither.
    """
    names = [entry.name for entry in list_datasets()]
    if name not in names and (name in _ALIASES or f"{name}_train" in names):
        return [find_dataset(split) for split in split_names(name)]
    return [find_dataset(name)]


def add_dataset(
    name: str,
    json_file: Path | str,
    images: Path | str,
    *,
    val_json: Path | str | None = None,
    val_images: Path | str | None = None,
    val_fraction: float | None = None,
    force: bool = False,
) -> list[DatasetEntry]:
    """Registers a data set in the user's registry; with a validation part, as NAME_train, NAME_val.

    Args:
        json_file, images: COCO-format JSON and the folder of its pictures.
        val_json, val_images: those of the validation split; val_images defaults to images.
        val_fraction: instead of val_json, the fraction of pictures to hold out, within (0, 1).
        force: replaces what has this name.

    Raises:
        BucketRankError: if the name is taken or malformed, a path does not exist, the JSON is not
            COCO, or the options contradict each other.
    """
    _check_options(name, val_json, val_images, val_fraction)
    train = {"json": _existing(json_file, "JSON"), "images": _existing(images, "image folder")}
    if val_json is not None:
        val_folder = images if val_images is None else val_images
        val = {"json": _existing(val_json, "JSON"), "images": _existing(val_folder, "image folder")}
        blocks = {f"{name}_train": train, f"{name}_val": val}
    elif val_fraction is not None:
        held_out = {**train, "val_fraction": val_fraction}
        blocks = {f"{name}_{part}": {**held_out, "part": part} for part in ("train", "val")}
    else:
        blocks = {name: train}
    path = registry_file()
    with _lock(path):
        _make_room(name, blocks, force)
        text = path.read_text(encoding="utf-8") if path.is_file() else _HEADER
        text = text if text.endswith("\n") or not text else text + "\n"
        text += yaml.safe_dump(blocks, sort_keys=False, allow_unicode=True)
        write_atomically(path, text)
    entries = _read(path, "user")
    return [entries[split] for split in blocks]


def remove_dataset(name: str) -> list[str]:
    """Takes a name, or the two splits of a data set, out of the user's registry.

    The files that it points to are never touched.

    Returns:
        the names removed.

    Raises:
        BucketRankError: if the name is not in the user's registry; says where it is.
    """
    with _lock(registry_file()):
        own = _read(registry_file(), "user")
        names = [name] if name in own else [f"{name}_{part}" for part in ("train", "val")]
        names = [split for split in names if split in own]
        if names:
            _drop_blocks(registry_file(), names)
            return names
    entry = members(name)[0]
    if entry.origin == "project":
        raise BucketRankError(f"'{name}' is defined in {entry.source}: remove it there.")
    raise BucketRankError(f"'{name}' is built in and cannot be removed.")


def _lock(path: Path) -> FileLock:
    """Keeps two commands from changing a registry at the same time, which would lose an entry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


def _builtin(name: str) -> DatasetEntry:
    if name in _EMBEDDED:
        split = _EMBEDDED[name]
        folder = shapes_folder()
        return DatasetEntry(
            name, annotations_file(folder, split), folder / split, origin="embedded"
        )
    json_file, images = _DETECTRON2[name]
    root = detectron2_root()
    return DatasetEntry(name, root / json_file, root / images, origin="detectron2")


def _read(path: Path | None, origin: Origin) -> dict[str, DatasetEntry]:
    """The entries of a registry file; none if there is no file."""
    if path is None or not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise BucketRankError(f"{path} is not valid YAML ({reason}). Mend or remove it.") from error
    if not isinstance(content, dict):
        raise BucketRankError(
            f"{path} must hold entries of the form 'NAME: {{json: F, images: D}}'."
        )
    return {str(name): _entry(str(name), fields, path, origin) for name, fields in content.items()}


def _entry(name: str, fields: Any, path: Path, origin: Origin) -> DatasetEntry:
    def fault(what: str) -> BucketRankError:
        return BucketRankError(f"Data set '{name}' in {path}: {what}.")

    if name in _EMBEDDED or name in _DETECTRON2:
        raise fault("this name is built in, give it another one")
    if not isinstance(fields, dict) or not {"json", "images"} <= set(fields):
        raise fault("needs the keys 'json' and 'images'")
    unknown = set(fields) - {"json", "images", "val_fraction", "part"}
    if unknown:
        raise fault(f"does not know the key '{sorted(map(str, unknown))[0]}'")
    fraction, part = fields.get("val_fraction"), fields.get("part")
    if (fraction is None) != (part is None):
        raise fault("'val_fraction' and 'part' go together")
    if part not in (None, "train", "val"):
        raise fault(f"'part' must be train or val, not {part!r}")
    if fraction is not None and not _is_fraction(fraction):
        raise fault(f"'val_fraction' must lie between 0 and 1, not {fraction!r}")
    folder = path.parent
    return DatasetEntry(
        name=name,
        json=_absolute(folder, fields["json"]),
        images=_absolute(folder, fields["images"]),
        part=part,
        val_fraction=fraction,
        origin=origin,
        source=path,
    )


def _absolute(folder: Path, path: Any) -> Path:
    return Path(os.path.normpath(folder / Path(str(path)).expanduser()))


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _check_options(name: str, val_json: Any, val_images: Any, val_fraction: Any) -> None:
    if not _NAME.fullmatch(name):
        raise BucketRankError(
            f"'{name}' cannot be a data set's name: use letters, digits, '_', '-' and '.'."
        )
    if val_json is not None and val_fraction is not None:
        raise BucketRankError("Give either --val-json or --val-fraction, not both.")
    if val_images is not None and val_json is None:
        raise BucketRankError("--val-images needs --val-json.")
    if val_fraction is not None and not _is_fraction(val_fraction):
        raise BucketRankError(f"--val-fraction must lie between 0 and 1, not {val_fraction}.")


def _existing(path: Path | str, what: str) -> str:
    absolute = Path(path).expanduser().absolute()
    found = absolute.is_dir() if what == "image folder" else absolute.is_file()
    if not found:
        raise BucketRankError(f"There is no {what} at {absolute}.")
    if what == "JSON":
        read_coco(absolute)
    return str(absolute)


def _make_room(name: str, blocks: dict[str, Any], force: bool) -> None:
    """Refuses a name that is taken; with force, takes out what has it in the user's registry."""
    reserved = {*_EMBEDDED, *_DETECTRON2, *_ALIASES, *_ALIASES.values(), "shapes", "coco_2014"}
    built_in = sorted({name, *blocks} & reserved)
    if built_in:
        raise BucketRankError(f"'{built_in[0]}' is built in: give your data set another name.")
    in_the_way = {name, *blocks, *([f"{name}_train", f"{name}_val"] if name in blocks else [])}
    project = _read(project_file(), "project")
    for taken in sorted(in_the_way & set(project)):
        raise BucketRankError(
            f"'{taken}' is defined in {project[taken].source}: change it there, or take another "
            "name."
        )
    taken_names = sorted(in_the_way & set(_read(registry_file(), "user")))
    if taken_names and not force:
        raise BucketRankError(
            f"There already is a data set '{taken_names[0]}' in {registry_file()}: take another "
            "name, or replace it with --force."
        )
    if taken_names:
        _drop_blocks(registry_file(), taken_names)


def _drop_blocks(path: Path, names: list[str]) -> None:
    """Takes entries out of a registry file and leaves the rest, comments included, as it is."""
    text = path.read_text(encoding="utf-8")
    kept, dropping = [], False
    for line in text.splitlines(keepends=True):
        if line[:1] not in (" ", "\t", "#", "\n", "\r"):
            dropping = line.split(":", 1)[0].strip().strip("'\"") in names
        if not dropping or line[:1] == "#":
            kept.append(line)
    rest = {key: value for key, value in yaml.safe_load(text).items() if str(key) not in names}
    if (yaml.safe_load("".join(kept)) or {}) != rest:
        kept = [_HEADER, yaml.safe_dump(rest, sort_keys=False, allow_unicode=True) if rest else ""]
    write_atomically(path, "".join(kept))


def _pairs(names: list[str]) -> list[str]:
    stems = [name.removesuffix("_train") for name in names if name.endswith("_train")]
    return [stem for stem in stems if f"{stem}_val" in names]


def _unknown(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(matches)}?" if matches else ""
    return (
        f"There is no data set '{name}'.{hint} `bucketrank dataset list` shows all; add yours with "
        f"`bucketrank dataset add {name} --json F --images D`."
    )
