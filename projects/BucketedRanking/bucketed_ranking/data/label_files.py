"""Pascal VOC, LabelMe, CVAT and Open Images: labels that name the pictures they belong to."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..errors import BucketRankError
from .images import examine_images
from .labels import (
    LabelledObject,
    LabelledPicture,
    Labels,
    PictureFinder,
    Skipped,
    list_files,
    read_json,
    read_text,
    surrounding_box,
)

_CIRCLE_CORNERS = 32


def read_voc(source: Path, images: Path | None) -> dict[str, Labels]:
    """Pascal VOC: an XML file a picture. Coordinates are taken as they are, as today's tools write
    them (VOC's own count pixels from 1). A "difficult" object is a crowd: neither learnt nor
    counted, as VOC evaluates it.

    ImageSets/Main/train.txt and val.txt, where they are, give the splits.
    """
    finder, skipped = PictureFinder(images or source), Skipped()
    found: dict[Path, LabelledPicture] = {}
    for file in _files(source, ".xml"):
        root = _xml(file)
        if root.tag != "annotation":
            continue
        path = finder.find(root.findtext("filename") or file.stem, file.parent)
        if not path.is_file():
            path = finder.find(file.stem, file.parent)
        size = _size(root.findtext("size/width"), root.findtext("size/height"))
        objects = list(_voc_objects(root, file, skipped))
        found[file] = LabelledPicture(path, objects, size)
    main = source / "ImageSets" / "Main"
    lists = {split: main / f"{split}.txt" for split in ("train", "val")}
    if not all(map(Path.is_file, lists.values())):
        return {"": Labels(list(found.values()), None, skipped)}
    classes = sorted({thing.label for picture in found.values() for thing in picture.objects})
    labels = {}
    for split, file in lists.items():
        stems = {line.split()[0] for line in read_text(file).splitlines() if line.strip()}
        pictures = [picture for file, picture in found.items() if file.stem in stems]
        labels[split] = Labels(pictures, classes, skipped if split == "train" else Skipped())
    return labels


def _voc_objects(
    root: ElementTree.Element, file: Path, skipped: Skipped
) -> Iterator[LabelledObject]:
    for thing in root.iter("object"):
        label = (thing.findtext("name") or "").strip()
        try:
            edges = [float(thing.findtext(f"bndbox/{e}") or "") for e in _VOC_EDGES]
        except ValueError:
            skipped.add("object without a whole bndbox", str(file))
            continue
        if not label:
            skipped.add("object without a name", str(file))
            continue
        x0, y0, x1, y1 = edges
        difficult = thing.findtext("difficult") == "1"
        yield LabelledObject(label, (x0, y0, x1 - x0, y1 - y0), crowd=difficult)


_VOC_EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_labelme(source: Path, images: Path | None) -> dict[str, Labels]:
    """LabelMe: a JSON file a picture. Polygons and circles have masks, rectangles boxes alone;
    what has the same label and group_id is one object."""
    finder, skipped = PictureFinder(images or source), Skipped()
    pictures = []
    for file in _files(source, ".json"):
        content = read_json(file)
        if not is_labelme(content):
            continue
        path = finder.find(str(content.get("imagePath") or file.stem), file.parent)
        if not path.is_file():
            path = finder.find(file.stem, file.parent)
        parts = [
            (part, shape.get("group_id"))
            for number, shape in enumerate(content["shapes"], start=1)
            if (part := _labelme_part(shape, f"{file}, shape {number}", skipped))
        ]
        size = _size(content.get("imageWidth"), content.get("imageHeight"))
        pictures.append(LabelledPicture(path, _joined(parts), size))
    return {"": Labels(pictures, None, skipped)}


def is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _labelme_part(shape: Any, where: str, skipped: Skipped) -> LabelledObject | None:
    try:
        label, kind = str(shape["label"]), shape.get("shape_type") or "polygon"
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        skipped.add("malformed shape", where)
        return None
    flat = [value for point in points for value in point]
    if kind == "rectangle" and len(points) >= 2:
        return LabelledObject(label, surrounding_box(flat))
    if kind == "polygon" and len(points) >= 3:
        return LabelledObject(label, polygons=[flat])
    if kind == "circle" and len(points) == 2:
        return LabelledObject(label, polygons=[_circle(*points)])
    skipped.add(f"{kind} of {len(points)} points", where)
    return None


def _circle(center: tuple[float, float], edge: tuple[float, float]) -> list[float]:
    radius = math.dist(center, edge)
    angles = [2 * math.pi * corner / _CIRCLE_CORNERS for corner in range(_CIRCLE_CORNERS)]
    return [
        value
        for angle in angles
        for value in (
            center[0] + radius * math.cos(angle),
            center[1] + radius * math.sin(angle),
        )
    ]


def _joined(parts: list[tuple[LabelledObject, Any]]) -> list[LabelledObject]:
    """One object for the polygons of a label that share a group."""
    objects: list[LabelledObject] = []
    groups: dict[tuple[str, Any], LabelledObject] = {}
    for part, group in parts:
        first = groups.get((part.label, group))
        if group in (None, "", "0", 0) or not part.polygons or first is None:
            objects.append(part)
            if part.polygons:
                groups[part.label, group] = part
        else:
            first.polygons += part.polygons
    return objects


def read_cvat(source: Path, images: Path | None) -> dict[str, Labels]:
    """CVAT for images 1.1: one XML file. Polygons have masks, boxes none (the one around a turned
    box is taken); labels are in the order of the task, and parts of a group_id are one object."""
    folder = source if source.is_dir() else source.parent
    finder, skipped = PictureFinder(images or folder), Skipped()
    pictures, classes = [], []
    for file in _files(source, ".xml"):
        root = _xml(file)
        if root.tag != "annotations":
            continue
        classes += [name.text or "" for name in root.findall("meta//labels/label/name")]
        for image in root.iter("image"):
            name = image.get("name") or ""
            parts = [
                (part, shape.get("group_id"))
                for shape in image
                if (part := _cvat_part(shape, f"{file}, image {name}", skipped))
            ]
            size = _size(image.get("width"), image.get("height"))
            pictures.append(LabelledPicture(finder.find(name, file.parent), _joined(parts), size))
    used = {thing.label for picture in pictures for thing in picture.objects}
    known = list(dict.fromkeys(classes))
    return {"": Labels(pictures, [*known, *sorted(used - set(known))], skipped)}


def _cvat_part(shape: ElementTree.Element, where: str, skipped: Skipped) -> LabelledObject | None:
    if shape.tag == "tag":
        return None
    label = shape.get("label") or ""
    try:
        if shape.tag == "box":
            corners = [float(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr")]
            return LabelledObject(label, _turned(corners, float(shape.get("rotation") or 0)))
        if shape.tag == "polygon":
            pairs = [pair.split(",") for pair in shape.attrib["points"].split(";")]
            return LabelledObject(label, polygons=[[float(v) for x, y in pairs for v in (x, y)]])
    except (KeyError, ValueError):
        skipped.add(f"malformed {shape.tag}", where)
        return None
    skipped.add(shape.tag, where)
    return None


def _turned(corners: list[float], degrees: float) -> tuple[float, float, float, float]:
    """The box around a box that is turned about its centre."""
    x0, y0, x1, y1 = corners
    if degrees == 0:
        return x0, y0, x1 - x0, y1 - y0
    cos, sin = (abs(f(math.radians(degrees))) for f in (math.cos, math.sin))
    width, height = cos * (x1 - x0) + sin * (y1 - y0), sin * (x1 - x0) + cos * (y1 - y0)
    return (x0 + x1 - width) / 2, (y0 + y1 - height) / 2, width, height


def read_openimages(source: Path, images: Path | None) -> dict[str, Labels]:
    """Open Images: a CSV with a box a line, in parts of the picture; IsGroupOf makes a crowd.

    Names for the labels come from a class-descriptions*.csv beside it, where there is one.
    """
    folder = source if source.is_dir() else source.parent
    finder, skipped = PictureFinder(images or folder), Skipped()
    names = {}
    for file in sorted(folder.glob("class-descriptions*.csv")):
        names |= {
            row[0]: row[1] for row in csv.reader(read_text(file).splitlines()) if len(row) > 1
        }
    boxes: dict[Path, list[tuple[str, list[float], bool]]] = defaultdict(list)
    for file in _files(source, ".csv"):
        rows = csv.DictReader(read_text(file).splitlines())
        if not {"ImageID", "LabelName", *_OPENIMAGES_EDGES} <= set(rows.fieldnames or ()):
            continue
        for number, row in enumerate(rows, start=2):
            try:
                edges = [float(row[edge]) for edge in _OPENIMAGES_EDGES]
            except (TypeError, ValueError):
                skipped.add("line without four numbers", f"{file}:{number}")
                continue
            label = names.get(row["LabelName"], row["LabelName"])
            path = finder.find(row["ImageID"], file.parent)
            boxes[path].append((label, edges, row.get("IsGroupOf") == "1"))
    facts = examine_images(folder, [str(path) for path in boxes], decode=False)
    pictures = []
    for path, lines in boxes.items():
        fact = facts[str(path)]
        if fact.fault is not None:
            skipped.add(f"picture that is {fact.fault}", str(path))
            continue
        objects = []
        for label, edges, group in lines:
            x0, x1, y0, y1 = (
                round(v * (fact.width, fact.height)[i // 2], 2) for i, v in enumerate(edges)
            )
            box = (x0, y0, round(x1 - x0, 2), round(y1 - y0, 2))
            objects.append(LabelledObject(label, box, crowd=group))
        pictures.append(LabelledPicture(path, objects, (fact.width, fact.height)))
    return {"": Labels(pictures, None, skipped)}


_OPENIMAGES_EDGES = ("XMin", "XMax", "YMin", "YMax")


def _files(source: Path, ending: str) -> list[Path]:
    if source.is_file():
        return [source]
    return [path for path in list_files(source) if path.suffix.lower() == ending]


def _xml(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise BucketRankError(f"{file} is not valid XML: {error}.") from error


def _size(width: Any, height: Any) -> tuple[int, int] | None:
    """The size that a label file states; None if it states none, as some tools do by 0."""
    try:
        size = int(width), int(height)
    except (TypeError, ValueError):
        return None
    return size if min(size) > 0 else None
