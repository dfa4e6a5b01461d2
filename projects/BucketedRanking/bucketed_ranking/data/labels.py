"""Labels of any format on their way to COCO JSON: what readers fill in, and the JSON of it."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BucketRankError
from .images import PICTURES, examine_images

LABEL_FILES = {".txt", ".xml", ".json", ".csv", ".yaml", ".yml", ".names"}


@dataclass
class LabelledObject:
    """An object of a picture, in pixels.

    ``box`` is x, y, width, height; None: what surrounds the polygons, each x0, y0, x1, y1, ...
    """

    label: str
    box: tuple[float, float, float, float] | None = None
    polygons: list[list[float]] = field(default_factory=list)
    crowd: bool = False


@dataclass
class LabelledPicture:
    """A picture file, which may be missing, and its objects. A size of None is that of the file."""

    path: Path
    objects: list[LabelledObject]
    size: tuple[int, int] | None = None


class Skipped:
    """What readers leave out: how often, for which reason, and where the first one is."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, where: str) -> None:
        self.places[reason].append(where)

    def sentences(self) -> list[str]:
        return [
            f"skipped {len(places)} x {reason}, first {places[0]}"
            for reason, places in self.places.items()
        ]


@dataclass
class Labels:
    """All of a data set, or of one split of it; ``classes`` in order, None: by their names."""

    pictures: list[LabelledPicture]
    classes: list[str] | None
    skipped: Skipped


class PictureFinder:
    """Finds the file that a label file means by a name, with or without folders and ending."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in list_pictures(folder):
            self._by_name[path.name].append(path)
            self._by_name[path.stem].append(path)

    def find(self, name: str, beside: Path) -> Path:
        """Beside the label file, below the folder by its path, else anywhere in it by its name.

        Where there is none, or several of that name, the path that there should be.
        """
        name = name.replace("\\", "/")
        for candidate in (beside / name, self.folder / name):
            if candidate.is_file():
                return Path(os.path.normpath(candidate))
        for key in (Path(name).name, Path(name).stem):
            found = self._by_name.get(key, [])
            if len(found) == 1:
                return found[0]
        return self.folder / Path(name).name


def list_pictures(folder: Path) -> list[Path]:
    """The picture files below a folder, by their paths; hidden ones are left out."""
    return [path for path in list_files(folder) if path.suffix.lower() in PICTURES]


def list_files(folder: Path) -> list[Path]:
    """The files below a folder, by their paths; linked folders too, hidden ones are left out."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()  # a link to where it is
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(found)


def read_text(path: Path) -> str:
    """The text of a label file; BucketRankError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BucketRankError(f"{path} cannot be read: {error}.") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; BucketRankError, with its line, if it cannot be read."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise BucketRankError(f"{path} is not valid JSON: {error}.") from error


def surrounding_box(points: Iterable[float]) -> tuple[float, float, float, float]:
    """x, y, width and height of the box around x0, y0, x1, y1, ..."""
    values = list(points)
    xs, ys = values[::2], values[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def as_coco(labels: Labels) -> tuple[dict[str, Any], Path]:
    """The content of a COCO JSON, pictures in the order of their paths, and their folder.

    Raises:
        BucketRankError: there are no pictures, or there is no object.
    """
    pictures = sorted(labels.pictures, key=lambda picture: picture.path)
    names = labels.classes
    if names is None:
        names = sorted({thing.label for picture in pictures for thing in picture.objects})
    if not pictures or not any(picture.objects for picture in pictures):
        reasons = "; ".join(labels.skipped.sentences())
        raise BucketRankError(
            f"There is no labelled object in {len(pictures)} pictures"
            f"{f' ({reasons})' if reasons else ''}; is the format right (--format)?"
        )
    folder = Path(os.path.commonpath([picture.path.parent for picture in pictures]))
    unsized = [str(p.path.relative_to(folder)) for p in pictures if p.size is None]
    facts = examine_images(folder, unsized, decode=False)
    ids = {name: index for index, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for picture in pictures:
        name = str(picture.path.relative_to(folder))
        width, height = picture.size or (facts[name].width, facts[name].height)
        number = len(images) + 1
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for thing in picture.objects:
            box = thing.box or surrounding_box(v for points in thing.polygons for v in points)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": ids[thing.label],
                "bbox": list(box),
                "iscrowd": int(thing.crowd),
            }
            if thing.polygons:
                annotation["segmentation"] = thing.polygons
            annotations.append(annotation)
    categories = [{"id": index, "name": name} for name, index in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}, folder


def fingerprint(source: Path) -> str:
    """Changes with the label files of a folder, or with the file: names, sizes and times."""
    files = list_files(source) if source.is_dir() else [source]
    digest = hashlib.sha256()
    for path in files:
        if path.suffix.lower() in LABEL_FILES:
            status = path.stat()
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:12]
