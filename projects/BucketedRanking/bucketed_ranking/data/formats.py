"""Label formats by name: recognising one, and turning it into COCO JSON that the registry takes.

The readers are this package's own. globox reads the same formats, but no masks, neither class names
nor splits of a data.yaml, one picture ending a folder, and it stops at the first line or box that
it does not expect; labelformat lacks LabelMe and Open Images and leaves out pictures without
objects; datumaro asks for other versions of Pillow and OpenCV. (globox writes the labels that the
tests of these readers read.)
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BucketRankError
from .entries import DatasetEntry
from .files import read_coco, user_folder, write_atomically
from .label_files import (
    is_labelme,
    read_cvat,
    read_labelme,
    read_openimages,
    read_voc,
)
from .labels import LABEL_FILES, Labels, as_coco, fingerprint, list_files, read_json, read_text
from .registry import add_dataset, check_name
from .yolo import read_yolo

Reader = Callable[[Path, Path | None], dict[str, Labels]]

READERS: dict[str, Reader] = {
    "yolo": read_yolo,
    "yolo-seg": read_yolo,
    "voc": read_voc,
    "labelme": read_labelme,
    "cvat": read_cvat,
    "openimages": read_openimages,
}
FORMATS = ("auto", "coco", *READERS)

# Of a folder's label files so many are looked into to recognise their format.
_LOOK_AT = 200
_ABOUT = ".source.json"
_IMAGE_FOLDERS = ("images", "train2017", "JPEGImages")


@dataclass(frozen=True)
class Split:
    """COCO JSON, the folder of its pictures, and what was left out in making it."""

    json: Path
    images: Path
    skipped: list[str]


def recognise(source: Path) -> tuple[str, str]:
    """The format of a file or folder of labels, and what shows it.

    Raises:
        BucketRankError: nothing does.
    """
    if not source.exists():
        raise BucketRankError(f"There is no file or folder {source}.")
    if source.suffix.lower() in (".yaml", ".yml"):
        return "yolo", f"{source.name} is a YAML file"
    files = [source] if source.is_file() else list_files(source)
    files = [file for file in files if file.suffix.lower() in LABEL_FILES]
    for file in files:
        if file.suffix.lower() in (".yaml", ".yml") and "names:" in read_text(file):
            return "yolo", f"{file} names classes"
    for file in files[:_LOOK_AT]:
        found = _recognise_file(file)
        if found:
            return found
    raise BucketRankError(
        f"The format of {source} is not recognised: it holds no labels of COCO, YOLO, Pascal VOC, "
        "LabelMe, CVAT or Open Images; name it with --format if it does."
    )


def _recognise_file(file: Path) -> tuple[str, str] | None:
    ending, text = file.suffix.lower(), read_text(file)
    if ending == ".xml" and "<annotations" in text:
        return "cvat", f"{file} has <annotations>"
    if ending == ".xml" and "<annotation" in text:
        return "voc", f"{file} has <annotation>"
    if ending == ".csv" and {"ImageID", "LabelName", "XMin"} <= set(
        text.partition("\n")[0].split(",")
    ):
        return "openimages", f"{file} has the columns ImageID, LabelName, XMin"
    if ending == ".json":
        content = read_json(file)
        if is_labelme(content):
            return "labelme", f"{file} has shapes"
        if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
            return "coco", f"{file} has images and annotations"
    if ending == ".txt" and _is_yolo_line(text.partition("\n")[0]):
        return "yolo", f"{file} has lines of a class and numbers from 0 to 1"
    return None


def _is_yolo_line(line: str) -> bool:
    try:
        index, *values = [float(word) for word in line.split()]
    except ValueError:
        return False
    return index.is_integer() and len(values) >= 4 and all(0 <= value <= 1 for value in values)


def find_splits(name: str, source: Path, format_name: str, images: Path | None) -> dict[str, Split]:
    """COCO JSON of labels in any format: of "train" and "val", or of "", which is all of them.

    Of other formats than COCO it is written beside the registry, with the source's fingerprint.

    Raises:
        BucketRankError: a file cannot be read, or there is nothing in it; says where.
    """
    source = source.expanduser().absolute()
    images = images and images.expanduser().absolute()
    if not source.exists():
        raise BucketRankError(f"There is no file or folder {source}.")
    if images is not None and not images.is_dir():
        raise BucketRankError(f"There is no image folder at {images}.")
    if format_name == "coco":
        return _coco_splits(source, images)
    # The labels that a YAML file names lie around it.
    watched = source.parent if source.suffix.lower() in (".yaml", ".yml") else source
    about = {
        "source": str(source),
        "images": images and str(images),
        "format": format_name,
        "watched": str(watched),
        "fingerprint": fingerprint(watched),
    }
    splits = {}
    for split, labels in READERS[format_name](source, images).items():
        text, folder = _converted(labels)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        stem = "-".join(filter(None, [name, split, digest]))
        path = user_folder("config") / "converted" / f"{stem}.json"
        write_atomically(path, text)
        write_atomically(path.with_suffix(_ABOUT), json.dumps(about, indent=1) + "\n")
        splits[split] = Split(path, folder, labels.skipped.sentences())
    return splits


def _converted(labels: Labels) -> tuple[str, Path]:
    """COCO JSON and the folder of its pictures."""
    content, folder = as_coco(labels)
    _require_pictures(content, folder)
    return json.dumps(content, ensure_ascii=False), folder


def _require_pictures(content: dict[str, Any], folder: Path) -> None:
    missing = [i["file_name"] for i in content["images"] if not (folder / i["file_name"]).is_file()]
    if len(missing) == len(content["images"]):
        raise BucketRankError(
            f"None of the {len(missing)} labelled pictures is there, such as "
            f"{folder / missing[0]}; name their folder with --images."
        )


def _coco_splits(source: Path, images: Path | None) -> dict[str, Split]:
    """A JSON; the one JSON of a folder; or train/ and valid/ with _annotations.coco.json."""
    if source.is_dir():
        exported = {
            split: folder / "_annotations.coco.json"
            for split, names in (("train", ("train",)), ("val", ("valid", "val")))
            for folder in (source / name for name in names)
            if (folder / "_annotations.coco.json").is_file()
        }
        if len(exported) == 2:
            return {split: Split(file, file.parent, []) for split, file in exported.items()}
        files = [file for file in list_files(source) if file.suffix.lower() == ".json"]
        files = [file for file in files if _recognise_file(file) is not None]
        if len(files) != 1:
            raise BucketRankError(
                f"{source} holds {len(files)} COCO JSON files; name the one to take, and with "
                "--val-json that of the validation split."
            )
        source = files[0]
    return {"": Split(source, images or _folder_of_pictures(source), [])}


def _folder_of_pictures(file: Path) -> Path:
    """Where the first pictures of a COCO JSON are: beside it, or in a folder of a usual name."""
    records = read_coco(file)["images"]
    names = [str(r.get("file_name")) for r in records[:20] if isinstance(r, dict)]
    for parent in (file.parent, file.parent.parent):
        for folder in (parent, *(parent / usual for usual in _IMAGE_FOLDERS)):
            if any((folder / name).is_file() for name in names):
                return folder
    raise BucketRankError(
        f"The pictures of {file} are not beside it; name their folder with --images."
    )


def changed_source(entry: DatasetEntry) -> str | None:
    """The labels that a converted data set was made of, if they have changed since; else None."""
    about_file = entry.json.with_suffix(_ABOUT)
    if not about_file.is_file():
        return None
    about = read_json(about_file)
    source, watched = Path(about["source"]), Path(about["watched"])
    if source.exists() and fingerprint(watched) == about["fingerprint"]:
        return None
    images = Path(about["images"]) if about["images"] else None
    try:  # files that are no labels of this data set, such as a run's, may lie there too
        splits = READERS[about["format"]](source, images).values() if source.exists() else []
        same = read_text(entry.json) in [_converted(labels)[0] for labels in splits]
    except BucketRankError:
        same = False
    return None if same else str(source)


def add_labels(
    name: str,
    source: Path,
    format_name: str,
    images: Path | None,
    *,
    val_fraction: float | None = None,
    force: bool = False,
) -> tuple[list[DatasetEntry], list[str]]:
    """Adds labels in a format of FORMATS but "auto" to the user's registry.

    Args:
        source, images: see :func:`find_splits`.
        val_fraction, force: see :func:`add_dataset`; a source with two splits has its own.

    Returns:
        The entries, and what was left out, in sentences.

    Raises:
        BucketRankError: see :func:`find_splits` and :func:`add_dataset`.
    """
    check_name(name)
    splits = find_splits(name, source, format_name, images)
    train = splits.get("train") or splits[""]
    val = splits.get("val")
    if val is not None and val_fraction is not None:
        raise BucketRankError(
            f"{source} has a validation split of its own: leave --val-fraction out."
        )
    own = {"val_json": val.json, "val_images": val.images} if val is not None else {}
    entries = add_dataset(
        name, train.json, train.images, val_fraction=val_fraction, force=force, **own
    )
    skipped = [
        f"{f'{part}: ' if part else ''}{sentence}"
        for part, split in splits.items()
        for sentence in split.skipped
    ]
    return entries, skipped
