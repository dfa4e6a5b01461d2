"""Finds what is wrong with the content of a COCO JSON, and makes a clean copy of it."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .entries import DatasetEntry
from .fields import file_name, identity, integer, is_box, is_number, short
from .images import ImageFacts
from .masks import mask_area, valid_mask

MAX_EXAMPLES = 5
# 16-bit pictures with no value from here on hold 12 bits or fewer: 16 of 256 grey levels are left.
_DARK = 4096

Severity = Literal["error", "warning", "note"]

KINDS: dict[str, tuple[Severity, str]] = {
    "unreadable JSON": ("error", "nothing can be read"),
    "malformed category": ("error", "the category is left out"),
    "duplicate category id": ("error", "the first one stands"),
    "duplicate category name": ("warning", "both are kept, the later one as 'NAME (id N)'"),
    "malformed image record": ("error", "the picture is skipped"),
    "duplicate image id": ("error", "the first one stands"),
    "image id of several files": ("error", "the pictures and their annotations are skipped"),
    "image id in words": ("note", "pictures are counted from 1 in results of evaluations"),
    "missing image": ("error", "the picture is skipped"),
    "unreadable image": ("error", "the picture is skipped"),
    "image size differs": ("error", "the picture is skipped"),
    "turned by EXIF": ("note", "boxes must fit the turned picture"),
    "16-bit picture": ("note", "its values become 8 bits; 65535 is white"),
    "dark 16-bit picture": ("warning", "it is used as it is; spread its values up to 65535"),
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
    """One kind of problem: how often it occurs, the first few places, what cleaning does."""

    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)
    severity: Severity = field(init=False)
    remedy: str = field(init=False)

    def __post_init__(self) -> None:
        self.severity, self.remedy = KINDS[self.kind]


class _UnusableError(Exception):
    """A record that is left out: the kind of finding (or another reason), and an example."""


class DatasetCleaner:
    """Goes once through the content of a COCO JSON, with what is known of its files by name.

    Attributes:
        findings: what is wrong, by kind.
        skipped: how many records are left out, by reason.
        clean: the content that is left, mended.
    """

    def __init__(self, entry: DatasetEntry, content: dict[str, Any], facts: dict[str, ImageFacts]):
        self.entry = entry
        self.facts = facts
        self.findings: dict[str, Finding] = {}
        self.skipped: Counter[str] = Counter()
        given = [a.get("segmentation") for a in content["annotations"] if isinstance(a, dict)]
        plausible = sum(valid_mask(segmentation) is not None for segmentation in given)
        self._has_masks = plausible > 0 and 2 * plausible >= len(content["annotations"])
        self._categories: dict[str, dict[str, Any]] = {}
        self._images: dict[str, dict[str, Any] | None] = {}  # None: skipped
        self._seen: set[tuple[Any, ...]] = set()
        categories = self._usable(content["categories"], self._category)
        self._names: dict[str | None, set[str]] = defaultdict(set)  # files by image id
        for record in content["images"]:
            if (name := file_name(record)) is not None:
                self._names[identity(record.get("id"))].add(name)
        images = self._usable(content["images"], self._image)
        self._number_images(images)
        annotations = self._usable(content["annotations"], self._annotation)
        self._number_annotations(annotations)
        self.clean = {
            "info": content["info"] if isinstance(content.get("info"), dict) else {},
            "licenses": content.get("licenses") or [],
            "categories": categories,
            "images": images,
            "annotations": annotations,
        }
        for key in ("categories", "images", "annotations"):
            if not self.clean[key]:
                self._note("nothing usable", f"no usable {key}")
        if annotations and all(annotation["iscrowd"] for annotation in annotations):
            self._note("nothing usable", "no objects: every annotation is a crowd")

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

    def _usable(
        self, records: list[Any], clean: Callable[[Any, int], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The records as ``clean`` returns them, without those that it finds unusable."""
        kept = []
        for index, record in enumerate(records):
            try:
                kept.append(clean(record, index))
            except _UnusableError as error:
                kind, example = error.args
                self.skipped[kind] += 1
                if kind in KINDS:
                    self._note(kind, example)
        return kept

    def _category(self, record: Any, index: int) -> dict[str, Any]:
        number = integer(record.get("id")) if isinstance(record, dict) else None
        if number is None or record.get("name") in (None, ""):
            raise _UnusableError("malformed category", f"categories[{index}]: {short(record)}")
        name, key = str(record["name"]), str(number)
        if key in self._categories:
            raise _UnusableError("duplicate category id", f"id {number}: '{name}'")
        names = {category["name"] for category in self._categories.values()}
        if name in names:  # results are kept by name
            self._note("duplicate category name", f"id {number}: '{name}'")
            while name in names:
                name = f"{name} (id {number})"
        self._categories[key] = {**record, "id": number, "name": name}
        return self._categories[key]

    def _image(self, record: Any, index: int) -> dict[str, Any]:
        name = file_name(record)
        key = None if name is None else identity(record.get("id"))
        if name is None or key is None:
            raise _UnusableError("malformed image record", f"images[{index}]: {short(record)}")
        if len(self._names[key]) > 1:  # whose the annotations are, nobody can tell
            self._images[key] = None
            raise _UnusableError("image id of several files", f"id {key}: '{name}'")
        if key in self._images:
            raise _UnusableError("duplicate image id", f"id {key}: '{name}'")
        self._images[key] = None
        facts = self.facts[name]
        if facts.fault == "missing":
            hint = _hint(self.entry.images, name) if "missing image" not in self.findings else ""
            raise _UnusableError("missing image", f"'{name}' is not in {self.entry.images}{hint}")
        if facts.fault is not None:
            raise _UnusableError("unreadable image", f"'{name}': {facts.fault}")
        width, height = integer(record.get("width")), integer(record.get("height"))
        if None not in (width, height) and (width, height) != (facts.width, facts.height):
            turned = " as its EXIF orientation turns it" if facts.turned else ""
            size = f"{facts.width} x {facts.height}{turned}"
            raise _UnusableError(
                "image size differs", f"'{name}' is {size}, the JSON says {width} x {height}"
            )
        if facts.turned:
            self._note("turned by EXIF", f"'{name}'")
        if facts.deep:
            self._note("16-bit picture", f"'{name}'")
        if facts.brightest is not None and facts.brightest < _DARK:
            self._note("dark 16-bit picture", f"'{name}': brightest value {facts.brightest}")
        size = {"width": facts.width, "height": facts.height}
        image = {**record, "file_name": name, **size}
        self._images[key] = image
        return image

    def _number_images(self, images: list[dict[str, Any]]) -> None:
        """Give pictures whole numbers as ids, which evaluations ask for: their own, or new ones."""
        numbers = [integer(image["id"]) for image in images]
        if None in numbers or len(set(numbers)) < len(numbers):
            for image in images:
                if isinstance(image["id"], str):
                    self._note("image id in words", f"{short(image['id'])}: '{image['file_name']}'")
            numbers = list(range(1, len(images) + 1))
        for image, number in zip(images, numbers, strict=True):
            image["id"] = number

    def _annotation(self, record: Any, index: int) -> dict[str, Any]:
        known = isinstance(record, dict) and {"image_id", "category_id"} <= set(record)
        if not known or not is_box(record.get("bbox")):
            raise _UnusableError("malformed annotation", short(record))
        place = f"annotation {short(record.get('id'))}"
        image_key, category_key = identity(record["image_id"]), identity(record["category_id"])
        if image_key not in self._images:
            raise _UnusableError(
                "unknown image id", f"{place}: image_id {short(record['image_id'])}"
            )
        image = self._images[image_key]
        if image is None:
            raise _UnusableError("annotation of a skipped image", "")
        place += f" in '{image['file_name']}'"
        category = self._categories.get(category_key)
        if category is None:
            given = short(record["category_id"])
            raise _UnusableError("unknown category id", f"{place}: category_id {given}")
        place += f", {category['name']}: box {short(record['bbox'])}"
        box = self._clipped(record["bbox"], image, place)
        # The same annotation, id and all, is a copy; without an id it may be another object.
        signature = (str(record.get("id")), image_key, category_key, *record["bbox"])
        if record.get("id") is not None and signature in self._seen:
            raise _UnusableError("duplicate annotation", place)
        self._seen.add(signature)
        if record.get("ignore"):
            self._note("ignore flag", place)
        annotation = {
            "id": record.get("id"),
            "image_id": image["id"],
            "category_id": category["id"],
            "bbox": box,
            "iscrowd": int(bool(record.get("ignore") or record.get("iscrowd"))),
        }
        annotation |= {key: record[key] for key in ("keypoints", "num_keypoints") if key in record}
        mask = self._mask(record, image, annotation["iscrowd"], place)
        if mask is not None:
            annotation["segmentation"] = mask
        area = record.get("area")
        is_stale = mask is None and box != record["bbox"]
        if is_stale or not is_number(area) or not 0 < area < math.inf:
            area = mask_area(mask, box)
        return annotation | {"area": area}

    def _clipped(self, box: list[float], image: dict[str, Any], place: str) -> list[float]:
        """The box [x, y, w, h], cut at the picture's edge."""
        x, y, width, height = box
        if not all(map(math.isfinite, box)) or width <= 0 or height <= 0:
            raise _UnusableError("degenerate box", place)
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, image["width"]), min(y + height, image["height"])
        # Sums of decimals miss the edge by a rounding error; that is not worth a word.
        cut = max(x0 - x, y0 - y, x + width - x1, y + height - y1)
        outside = f"{place}, picture {image['width']} x {image['height']}"
        if cut <= 1e-3:
            if min(width, height) < 1:
                self._note("box under one pixel", place)
            if x1 > x0 and y1 > y0:
                return box if cut <= 0 else [x0, y0, x1 - x0, y1 - y0]
        elif min(x1 - x0, y1 - y0) >= min(1, width, height):
            self._note("box reaches outside", outside)
            return [x0, y0, x1 - x0, y1 - y0]
        raise _UnusableError("box outside image", outside)

    def _mask(self, record: dict[str, Any], image: dict[str, Any], crowd: int, place: str) -> Any:
        """The valid mask or None. Among masks, an object without a valid one is skipped."""
        given = record.get("segmentation")
        mask = valid_mask(given, [image["height"], image["width"]])
        if mask is None and given not in (None, [], {}, [[]]):
            if self._has_masks and not crowd:
                raise _UnusableError("invalid mask", place)
            self._note("mask left out", place)
        return mask

    def _number_annotations(self, annotations: list[dict[str, Any]]) -> None:
        """Gives a new id to annotations that have none, or one already taken."""
        numbers = [integer(annotation["id"]) for annotation in annotations]
        fresh = max((number for number in numbers if number is not None), default=0) + 1
        taken: set[int] = set()
        for annotation, number in zip(annotations, numbers, strict=True):
            if number in taken:
                self._note("duplicate annotation id", f"annotation {number}")
            # pycocotools takes an id of 0 for "no match".
            if number is None or number <= 0 or number in taken:
                number, fresh = fresh, fresh + 1
            annotation["id"] = number
            taken.add(number)


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
