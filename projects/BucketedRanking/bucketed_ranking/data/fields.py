"""Reads the fields of COCO records, whatever exporters wrote there."""

import json
import math
from typing import Any

import numpy as np


def short(value: Any) -> str:
    """A value as JSON, cut to 90 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 90 else text[:87] + "..."


def file_name(image: Any) -> str | None:
    """A picture's file name; LVIS gives only its address, whose end is the name under COCO."""
    if not isinstance(image, dict):
        return None
    name, address = image.get("file_name"), image.get("coco_url")
    if not name and isinstance(address, str):
        name = "/".join(address.split("/")[-2:])
    return name if isinstance(name, str) and name else None


def integer(value: Any) -> int | None:
    """A whole number, also one written as text or with a decimal point; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return int(value) if float(value) == int(float(value)) else None
    except (ValueError, OverflowError):
        return None


def is_number(value: Any) -> bool:
    """Whether it is a float, infinity and NaN included, or an int that fits into one."""
    return isinstance(value, float) or (type(value) is int and value.bit_length() < 1024)


def is_box(value: Any) -> bool:
    """Whether it is a list of four numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def valid_mask(segmentation: Any, size: list[int] | None = None) -> Any:
    """The valid part of a mask: polygons of three points or more, or run lengths; else None.

    Args:
        segmentation: that of an annotation.
        size: height and width of its picture, which run lengths must have; None takes any.
    """
    if isinstance(segmentation, list):
        return [polygon for polygon in segmentation if _is_polygon(polygon)] or None
    if not isinstance(segmentation, dict):
        return None
    counts, stated = segmentation.get("counts"), segmentation.get("size")
    if size not in (None, stated) or not isinstance(counts, str | list) or not counts:
        return None
    try:
        whole = isinstance(counts, str) or sum(counts) == math.prod(stated)
    except TypeError:
        return None
    return segmentation if whole else None


def _is_polygon(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    try:
        return bool(np.isfinite(np.array(polygon, dtype=np.float64)).all())
    except (TypeError, ValueError, OverflowError):
        return False


def mask_area(mask: Any, box: list[float]) -> float:
    """Area in square pixels of polygons, or of the box [x, y, w, h] for run lengths and None."""
    if not isinstance(mask, list):
        return float(box[2] * box[3])
    total = 0.0
    for polygon in mask:
        x, y = np.array(polygon, dtype=np.float64).reshape(-1, 2).T
        total += 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
    return total
