"""Goes through the content of a COCO JSON: what is wrong with it, and what is left of it."""

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bucketed_ranking.data.images import ImageFacts
from bucketed_ranking.data.registry import DatasetEntry

MAX_EXAMPLES = 5

Severity = Literal["error", "warning", "note"]

KINDS: dict[str, tuple[Severity, str]] = {
    "unreadable JSON": ("error", "nothing can be read"),
    "malformed category": ("error", "the category is left out"),
    "duplicate category id": ("error", "the first one stands"),
    "duplicate category name": ("warning", "both are kept"),
    "malformed image record": ("error", "the picture is skipped"),
    "duplicate image id": ("error", "the first one stands"),
    "missing image": ("error", "the picture is skipped"),
    "unreadable image": ("error", "the picture is skipped"),
    "image size differs": ("error", "the picture is skipped"),
    "turned by EXIF": ("note", "boxes must fit the turned picture"),
    "malformed annotation": ("error", "the annotation is skipped"),
    "unknown image id": ("error", "the annotation is skipped"),
    "unknown category id": ("error", "the annotation is skipped"),
    "degenerate box": ("error", "the annotation is skipped"),
    "box outside image": ("error", "the annotation is skipped"),
    "box reaches outside": ("warning", "the box is cut at the edge"),
    "box under one pixel": ("warning", "the box is kept"),
    "duplicate annotation": ("error", "one copy is kept"),
    "duplicate annotation id": ("warning", "a new id is given"),
    "invalid mask": ("error", "the annotation is skipped"),
    "mask left out": ("warning", "the box is kept"),
    "ignore flag": ("warning", "the annotation becomes a crowd"),
    "nothing usable": ("error", "it cannot be trained or evaluated on"),
}
"""Each kind of finding: how bad it is and what cleaning does about it."""


@dataclass
class Finding:
    """One kind of problem: how often it occurs and the first few places."""

    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind][0]

    @property
    def remedy(self) -> str:
        """What cleaning does about it."""
        return KINDS[self.kind][1]


class Sieve:
    """Goes through a COCO JSON once: what is wrong ends in ``findings``, the rest in ``clean``."""

    def __init__(self, entry: DatasetEntry, content: dict[str, Any], facts: dict[str, ImageFacts]):
        self.entry = entry
        self.facts = facts
        self.findings: dict[str, Finding] = {}
        self.skipped: Counter[str] = Counter()
        self._with_masks = _mostly_masks(content["annotations"])
        self._categories = self._sift_categories(content["categories"])
        self._images = self._sift_images(content["images"])
        self._ids: set[int] = set()
        self._seen: set[tuple[Any, ...]] = set()
        annotations = [a for a in map(self._annotation, content["annotations"]) if a is not None]
        self._renumber(annotations)
        self.clean = {
            "info": content["info"] if isinstance(content.get("info"), dict) else {},
            "licenses": content.get("licenses") or [],
            "categories": list(self._categories.values()),
            "images": [image for image in self._images.values() if image is not None],
            "annotations": annotations,
        }
        for key in ("categories", "images", "annotations"):
            if not self.clean[key]:
                self._note("nothing usable", f"no usable {key}")

    def complaint(self) -> str:
        """One sentence that says why nothing is left, and what to do."""
        lacking = self.findings["nothing usable"].examples[0]
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common(3))
        missing = self.findings.get("missing image")
        first = f" First: {missing.examples[0]}." if missing else ""
        return (
            f"Data set '{self.entry.name}' ({self.entry.json}) has {lacking}"
            f"{f': skipped {reasons}' if reasons else ''}.{first} `bucketrank dataset check "
            f"{self.entry.name}` shows more."
        )

    def _note(self, kind: str, example: str) -> None:
        finding = self.findings.setdefault(kind, Finding(kind))
        finding.count += 1
        if len(finding.examples) < MAX_EXAMPLES:
            finding.examples.append(example)

    def _skip(self, kind: str, example: str) -> None:
        self._note(kind, example)
        self.skipped[kind] += 1

    def _sift_categories(self, records: list[Any]) -> dict[str, dict[str, Any]]:
        kept: dict[str, dict[str, Any]] = {}
        names: set[str] = set()
        for index, record in enumerate(records):
            number = _integer(record.get("id")) if isinstance(record, dict) else None
            if number is None or record.get("name") in (None, ""):
                self._skip("malformed category", f"categories[{index}]: {_short(record)}")
                continue
            name = str(record["name"])
            if str(number) in kept:
                self._skip("duplicate category id", f"id {number}: '{name}'")
                continue
            if name in names:
                self._note("duplicate category name", f"id {number}: '{name}'")
            names.add(name)
            kept[str(number)] = {**record, "id": number, "name": name}
        return kept

    def _sift_images(self, records: list[Any]) -> dict[str, dict[str, Any] | None]:
        """The usable pictures by id as text; None for those skipped."""
        kept: dict[str, dict[str, Any] | None] = {}
        for index, record in enumerate(records):
            name = file_name(record)
            if name is None or not isinstance(record.get("id"), int | str):
                self._skip("malformed image record", f"images[{index}]: {_short(record)}")
                continue
            key = str(record["id"])
            if key in kept:
                self._skip("duplicate image id", f"id {key}: '{name}'")
                continue
            kept[key] = self._image(record, name)
        usable = [image for image in kept.values() if image is not None]
        if len({type(image["id"]) for image in usable}) > 1:
            for image in usable:
                image["id"] = str(image["id"])
        return kept

    def _image(self, record: dict[str, Any], name: str) -> dict[str, Any] | None:
        facts = self.facts[name]
        if facts.fault == "missing":
            hint = _hint(self.entry.images, name) if "missing image" not in self.findings else ""
            self._skip("missing image", f"'{name}' is not in {self.entry.images}{hint}")
            return None
        if facts.fault is not None:
            self._skip("unreadable image", f"'{name}': {facts.fault}")
            return None
        stated = _integer(record.get("width")), _integer(record.get("height"))
        size = facts.width, facts.height
        if None not in stated and stated != size:
            turned = " as its EXIF orientation turns it" if facts.turned else ""
            self._skip(
                "image size differs",
                f"'{name}' is {size[0]} x {size[1]}{turned}, the JSON says "
                f"{stated[0]} x {stated[1]}",
            )
            return None
        if facts.turned:
            self._note("turned by EXIF", f"'{name}'")
        return {**record, "file_name": name, "width": size[0], "height": size[1]}

    def _annotation(self, record: Any) -> dict[str, Any] | None:
        """The annotation as it goes into the clean JSON, or None."""
        box = _box(record)
        if box is None or not {"image_id", "category_id"} <= set(record):
            self._skip("malformed annotation", _short(record))
            return None
        place = f"annotation {record.get('id')}"
        image_key, category_key = str(record["image_id"]), str(record["category_id"])
        if image_key not in self._images:
            self._skip("unknown image id", f"{place}: image_id {image_key}")
            return None
        image = self._images[image_key]
        if image is None:
            self.skipped["annotation of a skipped image"] += 1
            return None
        place += f" in '{image['file_name']}'"
        if category_key not in self._categories:
            self._skip("unknown category id", f"{place}: category_id {category_key}")
            return None
        place += f", {self._categories[category_key]['name']}: box {_short(record['bbox'])}"
        clipped = self._clipped(box, image, place)
        if clipped is None or self._repeated(record, image_key, category_key, box, place):
            return None
        annotation = {
            "id": record.get("id"),
            "image_id": image["id"],
            "category_id": self._categories[category_key]["id"],
            "bbox": clipped,
            "iscrowd": self._crowd(record, place),
        }
        annotation |= {key: record[key] for key in ("keypoints", "num_keypoints") if key in record}
        return self._with_mask(annotation, record, image, box, place)

    def _clipped(self, box: list[float], image: dict[str, Any], place: str) -> list[float] | None:
        """The box cut at the picture's edge, XYWH; None if it is degenerate or outside."""
        x, y, width, height = box
        if not all(map(math.isfinite, box)) or width <= 0 or height <= 0:
            self._skip("degenerate box", place)
            return None
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, image["width"]), min(y + height, image["height"])
        # Sums of decimals miss the edge by a rounding error; that is not worth a word.
        cut = max(x0 - x, y0 - y, x + width - x1, y + height - y1)
        if cut <= 1e-3:
            if min(width, height) < 1:
                self._note("box under one pixel", place)
            if x1 > x0 and y1 > y0:
                return box if cut <= 0 else [x0, y0, x1 - x0, y1 - y0]
        elif min(x1 - x0, y1 - y0) >= min(1, width, height):
            edge = f"{image['width']} x {image['height']}"
            self._note("box reaches outside", f"{place}, picture {edge}")
            return [x0, y0, x1 - x0, y1 - y0]
        self._skip("box outside image", f"{place}, picture {image['width']} x {image['height']}")
        return None

    def _repeated(self, record: Any, image: str, category: str, box: list[float], at: str) -> bool:
        """Whether the same annotation, id and all, has been there before."""
        if record.get("id") is None:
            return False
        signature = (str(record["id"]), image, category, *box)
        if signature in self._seen:
            self._skip("duplicate annotation", at)
            return True
        self._seen.add(signature)
        return False

    def _crowd(self, record: dict[str, Any], place: str) -> int:
        if record.get("ignore"):
            self._note("ignore flag", place)
            return 1
        return int(bool(record.get("iscrowd")))

    def _with_mask(
        self,
        annotation: dict[str, Any],
        record: dict[str, Any],
        image: dict[str, Any],
        box: list[float],
        place: str,
    ) -> dict[str, Any] | None:
        """Adds mask and area. Without a valid mask, an annotation among masks is skipped."""
        given = record.get("segmentation")
        mask = _mask(given, image)
        if mask is not None:
            annotation["segmentation"] = mask
        elif not _no_mask(given):
            if self._with_masks and not annotation["iscrowd"]:
                self._skip("invalid mask", place)
                return None
            self._note("mask left out", place)
        area = record.get("area")
        stale = mask is None and annotation["bbox"] != box
        if not _number(area) or area <= 0 or stale:
            area = _area(mask, annotation["bbox"])
        annotation["area"] = area
        return annotation

    def _renumber(self, annotations: list[dict[str, Any]]) -> None:
        """Gives a new id to annotations that have none, or one already taken."""
        taken = [_integer(annotation["id"]) for annotation in annotations]
        fresh = max((number for number in taken if number is not None), default=0) + 1
        for annotation, number in zip(annotations, taken, strict=True):
            # pycocotools takes an id of 0 for "no match".
            if number is not None and number > 0 and number not in self._ids:
                annotation["id"] = number
            else:
                if number in self._ids:
                    self._note("duplicate annotation id", f"annotation {number}")
                annotation["id"] = fresh
                fresh += 1
            self._ids.add(annotation["id"])


def file_name(image: Any) -> str | None:
    """A picture's file name; LVIS gives only its address, whose end is the name under COCO."""
    if not isinstance(image, dict):
        return None
    name, address = image.get("file_name"), image.get("coco_url")
    if not name and isinstance(address, str):
        name = "/".join(address.split("/")[-2:])
    return name if isinstance(name, str) and name else None


def _hint(folder: Path, name: str) -> str:
    """Where the picture is, if the image folder was only a little wrong."""
    if (folder.parent / name).is_file():
        return f" (but in {folder.parent}: give that folder)"
    if (folder / Path(name).name).is_file():
        return f" (but '{Path(name).name}' is: the JSON's file names carry a folder)"
    for below in sorted(folder.glob("*/"))[:50]:
        if (below / name).is_file():
            return f" (but in {below}: give that folder)"
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 90 else text[:87] + "..."


def _integer(value: Any) -> int | None:
    """A whole number, also one written as text or with a decimal point."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float | str):
        try:
            return int(value) if float(value) == int(float(value)) else None
        except (ValueError, OverflowError):
            return None
    return value if isinstance(value, int) else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _box(record: Any) -> list[float] | None:
    box = record.get("bbox") if isinstance(record, dict) else None
    if not isinstance(box, list) or len(box) != 4:
        return None
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)
    return box if numbers else None


def _no_mask(segmentation: Any) -> bool:
    return segmentation in (None, [], {}, [[]])


def _mostly_masks(annotations: list[Any]) -> bool:
    """Whether at least half of the annotations have a plausible mask: a data set of masks."""
    plausible = sum(
        isinstance(a, dict) and _mask(a.get("segmentation"), None) is not None for a in annotations
    )
    return plausible * 2 >= len(annotations) > 0


def _mask(segmentation: Any, image: dict[str, Any] | None) -> Any:
    """The valid part of a mask: polygons of three points or more, or run lengths; else None."""
    if isinstance(segmentation, dict):
        counts, size = segmentation.get("counts"), segmentation.get("size")
        fits = image is None or size == [image["height"], image["width"]]
        if not fits or not isinstance(counts, str | list) or not counts:
            return None
        if isinstance(counts, list) and not _covers(counts, size):
            return None
        return segmentation
    if not isinstance(segmentation, list):
        return None
    return [polygon for polygon in segmentation if _valid_polygon(polygon)] or None


def _covers(counts: list[Any], size: Any) -> bool:
    """Whether uncompressed run lengths add up to the picture."""
    try:
        return bool(sum(counts) == math.prod(size))
    except TypeError:
        return False


def _valid_polygon(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    try:
        return bool(np.isfinite(np.array(polygon, dtype=np.float64)).all())
    except (TypeError, ValueError):
        return False


def _area(mask: Any, box: list[float]) -> float:
    """Area in square pixels: of the polygons or the box; run lengths go by their box too."""
    if not isinstance(mask, list):
        return float(box[2] * box[3])
    total = 0.0
    for polygon in mask:
        x, y = np.array(polygon, dtype=np.float64).reshape(-1, 2).T
        total += 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
    return total
