"""What a data set holds, in numbers: what `bucketrank dataset show` prints."""

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from bucketed_ranking.data.coco import clean_dataset, describe_dataset
from bucketed_ranking.data.registry import DatasetEntry
from bucketed_ranking.errors import BucketRankError

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
    ``image_size`` holds the smallest, median and largest width, and height, in pixels.
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
    content, clean = load_clean(entry)
    boxes = [a for a in content["annotations"] if not a.get("iscrowd")]
    per_class = Counter(a["category_id"] for a in boxes)
    images_of = defaultdict(set)
    for annotation in boxes:
        images_of[annotation["category_id"]].add(annotation["image_id"])
    return Summary(
        name=entry.name,
        json=str(entry.json),
        images_folder=str(entry.images),
        num_images=clean.num_images,
        num_empty_images=clean.num_images - len({a["image_id"] for a in boxes}),
        num_boxes=len(boxes),
        num_crowds=clean.num_annotations - len(boxes),
        has_masks=clean.has_masks,
        classes=tuple(
            ClassCount(name, per_class[category], len(images_of[category]))
            for category, name in zip(clean.category_ids, clean.class_names, strict=True)
        ),
        sizes=_sizes(boxes),
        widths=_spread([image["width"] for image in content["images"]]),
        heights=_spread([image["height"] for image in content["images"]]),
        skipped=clean.skipped,
    )


def load_clean(entry: DatasetEntry) -> tuple[dict[str, Any], Any]:
    """The JSON that training sees, and its description (``CleanDataset``)."""
    if not entry.present:
        raise BucketRankError(
            f"The files of '{entry.name}' are absent: expected {entry.json} and the pictures in "
            f"{entry.images}."
        )
    cleaned_already = entry.origin in ("embedded", "detectron2")
    clean = describe_dataset(entry) if cleaned_already else clean_dataset(entry)
    return json.loads(clean.json.read_text(encoding="utf-8")), clean


def _sizes(boxes: list[dict[str, Any]]) -> dict[str, int]:
    counts = {"small": 0, "medium": 0, "large": 0}
    for annotation in boxes:
        area = annotation["area"]
        counts["small" if area < _SMALL else "medium" if area < _MEDIUM else "large"] += 1
    return counts


def _spread(values: list[int]) -> tuple[int, int, int]:
    ordered = sorted(values)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]
