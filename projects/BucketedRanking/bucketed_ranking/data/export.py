"""Writes a data set, as training takes it, in the format of other tools, with its pictures."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from ..errors import BucketRankError
from .coco import clean_dataset
from .entries import DatasetEntry
from .files import read_coco

# A picture of COCO JSON under the name that it has in the export, and its annotations.
_Picture = tuple[dict[str, Any], list[dict[str, Any]]]


def export_dataset(entries: list[DatasetEntry], format_name: str, folder: Path) -> list[str]:
    """Write one data set, or two splits of it, into a new folder; the user's files are only read.

    What cleaning skips is left out. Pictures of subfolders get their folders into their names.

    Args:
        format_name: "coco", "yolo" or "voc".

    Returns:
        What the format cannot hold, in sentences.

    Raises:
        BucketRankError: an unknown format, or the folder holds something.
    """
    if format_name not in WRITERS:
        raise BucketRankError(
            f"There is no format {format_name!r} to export to; choose one of {', '.join(WRITERS)}."
        )
    if folder.exists() and any(folder.iterdir()):
        raise BucketRankError(f"The folder {folder} is not empty; choose another with --out.")
    lost: list[str] = []
    for entry in entries:
        info = clean_dataset(entry)
        content = read_coco(info.json)
        split = entry.name.rpartition("_")[2] if len(entries) > 1 else "train"
        target = folder / IMAGE_FOLDERS[format_name].format(split)
        target.mkdir(parents=True, exist_ok=True)
        for image in content["images"]:
            source = info.images / image["file_name"]
            image["file_name"] = image["file_name"].replace("/", "_")
            if (target / image["file_name"]).exists():
                raise BucketRankError(f"Two pictures of {entry.name} become {image['file_name']}.")
            shutil.copy(source, target / image["file_name"])
        lost += [f"{entry.name}: {loss}" for loss in WRITERS[format_name](content, folder, split)]
    return lost


def _write_coco(content: dict[str, Any], folder: Path, split: str) -> list[str]:
    (folder / f"{split}.json").write_text(json.dumps(content, ensure_ascii=False))
    return []


def _write_yolo(content: dict[str, Any], folder: Path, split: str) -> list[str]:
    """Polygons where every object is one polygon, else boxes: detectors take one or the other."""
    categories = sorted(content["categories"], key=lambda category: category["id"])
    index = {category["id"]: number for number, category in enumerate(categories)}
    labels = folder / "labels" / split
    labels.mkdir(parents=True)
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    polygons = bool(objects) and all(map(_is_one_polygon, objects))
    for image, annotations in _pictures(content):
        size = (image["width"], image["height"])
        lines = []
        for annotation in annotations:
            if annotation["iscrowd"]:
                continue
            x, y, width, height = annotation["bbox"]
            box = [x + width / 2, y + height / 2, width, height]
            values = annotation["segmentation"][0] if polygons else box
            relative = [f"{value / size[i % 2]:.8g}" for i, value in enumerate(values)]
            lines.append(" ".join([str(index[annotation["category_id"]]), *relative]))
        (labels / image["file_name"]).with_suffix(".txt").write_text(
            "".join(f"{x}\n" for x in lines)
        )
    file = folder / "data.yaml"
    about = yaml.safe_load(file.read_text()) if file.is_file() else {"path": "."}
    about |= {split: f"images/{split}", "names": [category["name"] for category in categories]}
    file.write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
    crowds = len(content["annotations"]) - len(objects)
    masks = 0 if polygons else sum(bool(a.get("segmentation")) for a in objects)
    return [
        f"{count} {what}"
        for count, what in ((crowds, "crowds are left out"), (masks, "masks are boxes now"))
        if count
    ]


def _is_one_polygon(annotation: dict[str, Any]) -> bool:
    return isinstance(mask := annotation.get("segmentation"), list) and len(mask) == 1


def _write_voc(content: dict[str, Any], folder: Path, split: str) -> list[str]:
    names = {category["id"]: category["name"] for category in content["categories"]}
    annotations_folder = folder / "Annotations"
    annotations_folder.mkdir(exist_ok=True)
    stems = []
    for image, annotations in _pictures(content):
        root = ElementTree.Element("annotation")
        _add(root, filename=image["file_name"])
        size = ElementTree.SubElement(root, "size")
        _add(size, width=image["width"], height=image["height"], depth=3)
        for annotation in annotations:
            thing = ElementTree.SubElement(root, "object")
            name = names[annotation["category_id"]]
            _add(thing, name=name, difficult=int(bool(annotation["iscrowd"])))
            x, y, width, height = annotation["bbox"]
            edges = {"xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height}
            _add(ElementTree.SubElement(thing, "bndbox"), **edges)
        ElementTree.indent(root)
        stems.append(Path(image["file_name"]).stem)
        ElementTree.ElementTree(root).write(annotations_folder / f"{stems[-1]}.xml", "utf-8")
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    masks = sum(bool(a.get("segmentation")) for a in content["annotations"])
    return [f"{masks} masks are boxes now"] if masks else []


def _add(parent: ElementTree.Element, **texts: Any) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)


def _pictures(content: dict[str, Any]) -> list[_Picture]:
    of_image = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    return [(image, of_image[image["id"]]) for image in content["images"]]


WRITERS: dict[str, Callable[[dict[str, Any], Path, str], list[str]]] = {
    "coco": _write_coco,
    "yolo": _write_yolo,
    "voc": _write_voc,
}
IMAGE_FOLDERS = {"coco": "images/{}", "yolo": "images/{}", "voc": "JPEGImages"}
