"""Data sets by name: a YAML file that people can read and edit, and what is there without it.

The user's registry is ``datasets.yaml`` in ``$BUCKETRANK_HOME`` or the user's folder of
configurations (on Linux ``~/.config/bucketrank``). A file ``bucketrank-datasets.yaml`` in the
current folder or one above it comes first; its paths may be relative to itself. One entry is one
split::

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
from pathlib import Path
from typing import Any

from ..errors import BucketRankError
from .entries import DatasetEntry, drop_entry, edited_registry, is_fraction, read_entries
from .fields import file_name
from .files import read_coco, user_folder
from .shapes import annotations_file, ensure_shapes, shapes_folder

PROJECT_FILE = "bucketrank-datasets.yaml"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

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
_BUILT_IN = _EMBEDDED.keys() | _DETECTRON2.keys()


def registry_file() -> Path:
    """The user's registry; it need not exist."""
    return user_folder("config") / "datasets.yaml"


def project_file() -> Path | None:
    """The project's registry: in the current folder, or in the nearest one above that has one."""
    here = Path.cwd()
    files = (folder / PROJECT_FILE for folder in (here, *here.parents))
    return next(filter(Path.is_file, files), None)


def detectron2_root() -> Path:
    """The folder in which Detectron2 looks for its own data sets."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser().absolute()


def list_datasets() -> list[DatasetEntry]:
    """Every registered split: the project's and the user's, the embedded ones, Detectron2's."""
    known = _user_entries() | _project_entries()
    built_in = map(_built_in, (*_EMBEDDED, *_DETECTRON2))
    return [*(known[name] for name in sorted(known)), *built_in]


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
    train, val = _pair(_ALIASES.get(name, name))
    names = {entry.name for entry in list_datasets()}
    if {train, val} <= names:
        return train, val
    whole = name.removesuffix("_train").removesuffix("_val")
    if name in names and set(_pair(whole)) <= names:
        raise BucketRankError(
            f"'{name}' is one split; the data set is called '{whole}' (its splits are "
            f"{whole}_train and {whole}_val)."
        )
    if name in names:
        raise BucketRankError(
            f"Data set '{name}' has no validation split. Hold one out with `bucketrank dataset add "
            f"{name} --json F --images D --val-fraction 0.2 --force`, or name two data sets with "
            f"--train {name} --val OTHER."
        )
    if {train, val} & names:
        missing = train if val in names else val
        raise BucketRankError(
            f"Data set '{name}' has no split '{missing}'. Register it with `bucketrank dataset "
            f"add {missing} --json F --images D`, or name two data sets with --train and --val."
        )
    pairs = {split.removesuffix("_train") for split in names if split.endswith("_train")}
    raise BucketRankError(_unknown(name, names | {p for p in pairs if f"{p}_val" in names}))


def members(name: str) -> list[DatasetEntry]:
    """The one entry of a name, or the two splits of a data set: what ``check`` and ``show`` take.

    Raises:
        BucketRankError: if the name is neither.
    """
    names = {entry.name for entry in list_datasets()}
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
    """Adds a data set to the user's registry; with a validation part, as NAME_train, NAME_val.

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
    train = _existing(json_file, images, 1 if val_fraction is None else 2)
    splits: dict[str, dict[str, Any]] = {name: train}
    if val_json is not None:
        val = _existing(val_json, images if val_images is None else val_images)
        splits = dict(zip(_pair(name), (train, val), strict=True))
    elif val_fraction is not None:
        held_out = {**train, "val_fraction": val_fraction}
        splits = {f"{name}_{part}": {**held_out, "part": part} for part in ("train", "val")}
    with edited_registry(registry_file()) as registry:
        for taken in _replaced(name, splits, force):
            drop_entry(registry, taken)
        registry.update(splits)
    entries = _user_entries()
    return [entries[split] for split in splits]


def remove_dataset(name: str) -> list[str]:
    """Takes a name, or both splits of a data set, out of the user's registry; returns the names.

    Raises:
        BucketRankError: if the name is not in the user's registry; says where it is.
    """
    with edited_registry(registry_file()) as registry:
        own = _user_entries()
        names = [name] if name in own else [split for split in _pair(name) if split in own]
        for split in names:
            drop_entry(registry, split)
    if names:
        return names
    entry = members(name)[0]
    if entry.origin == "project":
        raise BucketRankError(f"'{name}' is defined in {entry.source}: remove it there.")
    raise BucketRankError(f"'{name}' is built in and cannot be removed.")


def _pair(name: str) -> tuple[str, str]:
    return f"{name}_train", f"{name}_val"


def _user_entries() -> dict[str, DatasetEntry]:
    return read_entries(registry_file(), "user", _BUILT_IN)


def _project_entries() -> dict[str, DatasetEntry]:
    return read_entries(project_file(), "project", _BUILT_IN)


def _built_in(name: str) -> DatasetEntry:
    if name in _EMBEDDED:
        split, folder = _EMBEDDED[name], shapes_folder()
        json_file = annotations_file(folder, split)
        return DatasetEntry(name, json_file, folder / split, origin="embedded")
    json_path, images = _DETECTRON2[name]
    root = detectron2_root()
    return DatasetEntry(name, root / json_path, root / images, origin="detectron2")


def check_name(name: str) -> None:
    """Raise BucketRankError unless `name` can be a data set's name."""
    if not _NAME.fullmatch(name):
        raise BucketRankError(
            f"'{name}' cannot be a data set's name: use letters, digits, '_', '-' and '.'."
        )


def _check_options(name: str, val_json: Any, val_images: Any, val_fraction: Any) -> None:
    check_name(name)
    if val_json is not None and val_fraction is not None:
        raise BucketRankError("Give either --val-json or --val-fraction, not both.")
    if val_images is not None and val_json is None:
        raise BucketRankError("--val-images needs --val-json.")
    if val_fraction is not None and not is_fraction(val_fraction):
        raise BucketRankError(f"--val-fraction must lie between 0 and 1, not {val_fraction}.")


def _existing(json_file: Path | str, images: Path | str, pictures: int = 1) -> dict[str, str]:
    """The fields of an entry, as absolute paths; raises if a file is absent or not COCO.

    To be parted, the JSON must have two pictures.
    """
    json_path, folder = (Path(path).expanduser().absolute() for path in (json_file, images))
    if not folder.is_dir():
        raise BucketRankError(f"There is no image folder at {folder}.")
    content = read_coco(json_path)
    if len(set(map(file_name, content["images"])) - {None}) < pictures > 1:
        raise BucketRankError(
            f"{json_path} has fewer than two pictures, so none can be held out; leave "
            "--val-fraction out, or give --val-json."
        )
    return {"json": str(json_path), "images": str(folder)}


def _replaced(name: str, splits: Iterable[str], force: bool) -> list[str]:
    """The user's names that a new data set replaces; raises if it may not have its names."""
    reserved = {*_BUILT_IN, *_ALIASES, *_ALIASES.values(), "shapes", "coco_2014"}
    built_in = sorted({name, *splits} & reserved)
    if built_in:
        raise BucketRankError(f"'{built_in[0]}' is built in: give your data set another name.")
    needed = {name, *splits, *(_pair(name) if name in splits else ())}
    project = _project_entries()
    for taken in sorted(needed & project.keys()):
        raise BucketRankError(
            f"'{taken}' is defined in {project[taken].source}: change it there, or take another "
            "name."
        )
    replaced = sorted(needed & _user_entries().keys())
    if replaced and not force:
        raise BucketRankError(
            f"There already is a data set '{replaced[0]}' in {registry_file()}: take another "
            "name, or replace it with --force."
        )
    return replaced


def _unknown(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(matches)}?" if matches else ""
    return (
        f"There is no data set '{name}'.{hint} `bucketrank dataset list` shows all; add yours with "
        f"`bucketrank dataset add {name} --json F --images D`."
    )
