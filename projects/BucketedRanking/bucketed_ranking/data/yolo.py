"""YOLO's labels: a text file a picture, a line an object, `class x y width height` or a polygon."""

import os
from pathlib import Path
from typing import Any

import yaml

from ..errors import BucketRankError
from .images import examine_images
from .labels import LabelledObject, LabelledPicture, Labels, Skipped, list_pictures, read_text

_NAME_FILES = ("classes.txt", "obj.names", "labels.txt")
_VAL_NAMES = ("val", "valid", "validation")
# Six decimals, as most tools write them, hold a hundredth of a pixel of pictures of usual sizes.
_DECIMALS = 2


def read_yolo(source: Path, images: Path | None) -> dict[str, Labels]:
    """The splits of a YOLO folder or `data.yaml`: "train" and "val", or "" for all of it.

    Without a data.yaml, class names stand in classes.txt, a line each. The labels of
    .../images/a.jpg are in .../labels/a.txt, else beside the picture; a picture without a file has
    no objects.

    Args:
        images: the folder of the pictures, if it is not found by the usual names.

    Raises:
        BucketRankError: there are no class names or no pictures where they should be.
    """
    config = source if source.is_file() else _find_config(source)
    if config is not None:
        content = _read_config(config)
        names = _class_names(content, config)
        splits = _splits_of_config(content, config)
    else:
        names = _names_of_folder(source)
        splits = _splits_of_folder(source, images or source)
    return {split: _read_split(pictures, names, source) for split, pictures in splits.items()}


def _find_config(folder: Path) -> Path | None:
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (folder / name).is_file():
            return folder / name
    found = [path for path in sorted(folder.glob("*.y*ml")) if "names" in _read_config(path)]
    return found[0] if len(found) == 1 else None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise BucketRankError(
            f"{path} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    return content if isinstance(content, dict) else {}


def _class_names(content: dict[str, Any], config: Path) -> list[str]:
    names = content.get("names")
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise BucketRankError(
            f"{config} has no 'names': a list of class names, or a map from 0, 1, 2, ... to them."
        )
    return [str(name) for name in names]


def _splits_of_config(content: dict[str, Any], config: Path) -> dict[str, list[Path]]:
    root = config.parent / str(content.get("path") or ".")
    if not root.is_dir():
        root = config.parent  # written on another machine
    given = {"train": content.get("train"), "val": content.get("val") or content.get("valid")}
    if given["train"] is None:
        raise BucketRankError(f"{config} has no 'train': the folder of the training pictures.")
    return {
        split: [picture for part in _as_list(value) for picture in _pictures_of(part, root, config)]
        for split, value in given.items()
        if value is not None
    }


def _as_list(value: Any) -> list[str]:
    return [str(part) for part in (value if isinstance(value, list) else [value])]


def _pictures_of(part: str, root: Path, config: Path) -> list[Path]:
    """The pictures of a folder, or of a text file that lists them."""
    # Roboflow writes ../train/images for what lies beside its data.yaml.
    for candidate in (root / part, root / part.removeprefix("../")):
        if candidate.is_dir():
            return list_pictures(Path(os.path.normpath(candidate)))
        if candidate.is_file():
            lines = filter(None, map(str.strip, read_text(candidate).splitlines()))
            return [Path(os.path.normpath(candidate.parent / line)) for line in lines]
    raise BucketRankError(f"{config} names the pictures {part!r}, but there is no {root / part}.")


def _names_of_folder(folder: Path) -> list[str]:
    for place in (folder, folder / "labels"):
        for name in _NAME_FILES:
            if (place / name).is_file():
                lines = read_text(place / name).splitlines()
                return [line.strip() for line in lines if line.strip()]
    raise BucketRankError(
        f"{folder} holds YOLO labels but no class names: write a data.yaml with 'names', 'train' "
        "and 'val', or a classes.txt with one name a line."
    )


def _splits_of_folder(folder: Path, images: Path) -> dict[str, list[Path]]:
    """By the folders train and val, above or below the folder images; else one."""
    for root in (images / "images", images):
        train, val = root / "train", [root / name for name in _VAL_NAMES if (root / name).is_dir()]
        if train.is_dir() and val:
            return {"train": list_pictures(train), "val": list_pictures(val[0])}
    return {"": list_pictures(images)}


def _read_split(pictures: list[Path], names: list[str], source: Path) -> Labels:
    if not pictures:
        raise BucketRankError(
            f"There are no pictures in {source}; name their folder with --images."
        )
    skipped = Skipped()
    folder = Path(os.path.commonpath([path.parent for path in pictures]))
    relative = [str(path.relative_to(folder)) for path in pictures]
    facts = examine_images(folder, relative, decode=False)
    labelled = []
    for path, name in zip(pictures, relative, strict=True):
        fact, file = facts[name], label_file(path)
        if fact.fault is not None:
            skipped.add(f"picture that is {fact.fault}", str(path))
        elif file is None:
            labelled.append(LabelledPicture(path, [], (fact.width, fact.height)))
        else:
            size = (fact.width, fact.height)
            labelled.append(LabelledPicture(path, _read_lines(file, names, size, skipped), size))
    return Labels(labelled, names, skipped)


def label_file(picture: Path) -> Path | None:
    """Where the labels of a picture are: /labels/ for the last /images/ of its path, or beside."""
    parts = list(picture.parts)
    candidates = [picture.with_suffix(".txt")]
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        candidates.insert(0, Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt"))
    return next(filter(Path.is_file, candidates), None)


def _read_lines(
    file: Path, names: list[str], size: tuple[int, int], skipped: Skipped
) -> list[LabelledObject]:
    objects = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            index, *values = [float(word) for word in line.split()]
        except ValueError:
            skipped.add("line that is not all numbers", where)
            continue
        if not (index.is_integer() and 0 <= index < len(names)):
            skipped.add(f"class that is not one of the {len(names)} names", where)
            continue
        pixels = [round(v * size[i % 2], _DECIMALS) for i, v in enumerate(values)]
        label = names[int(index)]
        if len(values) == 4:
            x, y, width, height = (v * size[i % 2] for i, v in enumerate(values))
            corner = (round(x - width / 2, _DECIMALS), round(y - height / 2, _DECIMALS))
            objects.append(LabelledObject(label, (*corner, *pixels[2:])))
        elif len(values) >= 6 and len(values) % 2 == 0:
            objects.append(LabelledObject(label, polygons=[pixels]))
        else:
            skipped.add("line that is neither a box (5 numbers) nor a polygon (7, 9, ...)", where)
    return objects
