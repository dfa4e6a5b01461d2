"""What a data set holds, in numbers: what `bucketrank dataset show` prints."""

import statistics
from collections import Counter
from typing import Any

from ..errors import BucketRankError
from .coco import DatasetInfo, clean_dataset
from .entries import DatasetEntry
from .files import read_coco


def summarise(entry: DatasetEntry) -> dict[str, Any]:
    """Counts pictures, boxes, classes and sizes after cleaning, as training sees them.

    Returns:
        Plain types, for JSON. Crowds are counted apart, in "num_crowds" alone. "sizes" counts boxes
        by area as COCO does: small under 32 x 32 pixels, large from 96 x 96 on. "widths" and
        "heights" hold the smallest, the median and the largest of the pictures', in pixels.

    Raises:
        BucketRankError: if the files are absent or nothing in them is usable.
    """
    content, info = load_clean(entry)
    boxes = [a for a in content["annotations"] if not a.get("iscrowd")]
    per_class = Counter(a["category_id"] for a in boxes)
    images = Counter(category for category, _ in {(a["category_id"], a["image_id"]) for a in boxes})
    sizes = Counter(_size(a["area"]) for a in boxes)
    return {
        "name": entry.name,
        "json": str(entry.json),
        "images_folder": str(entry.images),
        "num_images": info.num_images,
        "num_empty_images": info.num_images - len({a["image_id"] for a in boxes}),
        "num_boxes": len(boxes),
        "num_crowds": info.num_annotations - len(boxes),
        "has_masks": info.has_masks,
        "classes": [
            {"name": name, "boxes": per_class[category], "images": images[category]}
            for category, name in zip(info.category_ids, info.class_names, strict=True)
        ],
        "sizes": {size: sizes[size] for size in ("small", "medium", "large")},
        "widths": _spread([image["width"] for image in content["images"]]),
        "heights": _spread([image["height"] for image in content["images"]]),
        "skipped": info.skipped,
    }


def load_clean(entry: DatasetEntry) -> tuple[dict[str, Any], DatasetInfo]:
    """The content of the JSON that training sees, and its description."""
    if not entry.present:
        raise BucketRankError(
            f"The files of '{entry.name}' are absent: expected {entry.json} and the pictures in "
            f"{entry.images}."
        )
    info = clean_dataset(entry)
    return read_coco(info.json), info


def _size(area: float) -> str:
    return "small" if area < 32**2 else "medium" if area < 96**2 else "large"


def _spread(values: list[int]) -> list[int]:
    return [min(values), statistics.median_high(values), max(values)]
