"""Reads the fields of COCO records, whatever exporters wrote there."""

import json
from typing import Any


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
    """A whole number of 64 bits, also one written as text or with a decimal point; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = int(value) if float(value) == int(float(value)) else None
    except (ValueError, OverflowError):
        return None
    return number if number is None or abs(number) < 2**62 else None


def identity(value: Any) -> str | None:
    """What tells ids apart: equal for 1, "1" and 1.0; None for what is no id."""
    if isinstance(value, str):
        return value
    number = integer(value)
    return None if number is None else str(number)


def is_number(value: Any) -> bool:
    """Whether it is a float, infinity and NaN included, or an int that fits into one."""
    return isinstance(value, float) or (type(value) is int and value.bit_length() < 1024)


def is_box(value: Any) -> bool:
    """Whether it is a list of four numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))
