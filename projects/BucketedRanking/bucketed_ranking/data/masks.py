"""Reads the masks of COCO annotations: polygons, and run lengths, plain or compressed."""

from typing import Any

import numpy as np

from .fields import integer, is_number

_BITS = 5  # of a number that one character of compressed run lengths holds


def valid_mask(segmentation: Any, size: list[int] | None = None) -> Any:
    """The valid part of a mask, else None; what passes can be rasterised in bounded time.

    Polygons have three points or more. Those that lie wholly outside the picture are left out, and
    so are those that leave it by more than its own width or height. Run lengths are whole numbers
    from 0 on, fill the picture exactly and cover a pixel of it.

    Args:
        segmentation: that of an annotation.
        size: height and width of its picture; None takes any.
    """
    if isinstance(segmentation, list):
        return [polygon for polygon in segmentation if _is_polygon(polygon, size)] or None
    if not isinstance(segmentation, dict):
        return None
    counts, stated = segmentation.get("counts"), _integers(segmentation.get("size"))
    if stated is None or len(stated) != 2 or size not in (None, stated):
        return None
    runs = _decompressed(counts) if isinstance(counts, str) else _integers(counts)
    if not runs or min(runs) < 0 or sum(runs) != stated[0] * stated[1] or not sum(runs[1::2]):
        return None
    return {"size": stated, "counts": counts if isinstance(counts, str) else runs}


def _is_polygon(polygon: Any, size: list[int] | None) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    if not all(map(is_number, polygon)):
        return False
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    if size is None or not np.isfinite(points).all():
        return bool(np.isfinite(points).all())
    extent = np.array(size[::-1])
    low, high = points.min(axis=0), points.max(axis=0)
    is_near = (low >= -extent).all() and (high <= 2 * extent).all()
    return bool(is_near and (low < extent).all() and (high > 0).all())


def _integers(values: Any) -> list[int] | None:
    """A list of whole numbers, or None where it is none."""
    if not isinstance(values, list):
        return None
    numbers = [integer(value) for value in values]
    return None if None in numbers else numbers


def _decompressed(text: str) -> list[int] | None:
    """Run lengths from pycocotools' text, or None where it is none.

    A number is written in characters of 5 bits, the lowest first, a sixth bit telling that more
    follow; from the fourth on it is the difference to the last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += _BITS
        if bits & 32:
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return None if shift else runs


def mask_area(mask: Any, box: list[float]) -> float:
    """Area in square pixels of polygons, or of the box [x, y, w, h] for run lengths and None."""
    if not isinstance(mask, list):
        return float(box[2] * box[3])
    total = 0.0
    for polygon in mask:
        x, y = np.array(polygon, dtype=np.float64).reshape(-1, 2).T
        total += 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
    return total
