"""What a data set holds, in numbers: what `bucketrank dataset show` prints."""

import json
import statistics
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import BucketRankError
from .coco import DatasetInfo, clean_dataset, describe_dataset
from .entries import DatasetEntry

_SMALL, _MEDIUM = 32**2, 96**2


@dataclass(frozen=True)
class ClassCount:
    """How many boxes a class has, and in how many pictures."""

    name: str
    boxes: int
    images: int


@dataclass(frozen=True)
class Summary:
    """Counts over what training sees, after cleaning; crowds are counted apart.

    ``sizes`` counts boxes by area as COCO does: small under 32 x 32 pixels, large from 96 x 96 on.
    ``widths`` and ``heights`` hold the smallest, the median and the largest, in pixels.
    """

    name: str
    json: str
    images_folder: str
    num_images: int
    num_empty_images: int
    num_boxes: int
    num_crowds: int
    has_masks: bool
    classes: tuple[ClassCount, ...]
    sizes: dict[str, int]
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    skipped: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarise(entry: DatasetEntry) -> Summary:
    """Counts pictures, boxes, classes and sizes.

    Raises:
        BucketRankError: if the files are absent or nothing in them is usable.
    """
    content, info = load_clean(entry)
    boxes = [a for a in content["annotations"] if not a.get("iscrowd")]
    per_class = Counter(a["category_id"] for a in boxes)
    images_of = defaultdict(set)
    for annotation in boxes:
        images_of[annotation["category_id"]].add(annotation["image_id"])
    sizes = Counter(_size(a["area"]) for a in boxes)
    return Summary(
        name=entry.name,
        json=str(entry.json),
        images_folder=str(entry.images),
        num_images=info.num_images,
        num_empty_images=info.num_images - len({a["image_id"] for a in boxes}),
        num_boxes=len(boxes),
        num_crowds=info.num_annotations - len(boxes),
        has_masks=info.has_masks,
        classes=tuple(
            ClassCount(name, per_class[category], len(images_of[category]))
            for category, name in zip(info.category_ids, info.class_names, strict=True)
        ),
        sizes={size: sizes[size] for size in ("small", "medium", "large")},
        widths=_spread([image["width"] for image in content["images"]]),
        heights=_spread([image["height"] for image in content["images"]]),
        skipped=info.skipped,
    )


def load_clean(entry: DatasetEntry) -> tuple[dict[str, Any], DatasetInfo]:
    """The content of the JSON that training sees, and its description."""
    if not entry.present:
        raise BucketRankError(
            f"The files of '{entry.name}' are absent: expected {entry.json} and the pictures in "
            f"{entry.images}."
        )
    is_clean = entry.origin in ("embedded", "detectron2")
    info = describe_dataset(entry) if is_clean else clean_dataset(entry)
    return json.loads(info.json.read_text(encoding="utf-8")), info


def _size(area: float) -> str:
    return "small" if area < _SMALL else "medium" if area < _MEDIUM else "large"


def _spread(values: list[int]) -> tuple[int, int, int]:
    return min(values), statistics.median_high(values), max(values)
