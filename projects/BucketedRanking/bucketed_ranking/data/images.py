"""Picture files: reading them in 8 bits, and their sizes and faults."""

import logging
import os
import warnings
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from PIL.Image import Transpose

logger = logging.getLogger("bucketed_ranking.data")

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
"""Endings of the files that are taken for pictures."""

_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What each EXIF orientation asks for; 5 to 8 exchange width and height."""


class UnreadableImageError(ValueError):
    """Says why a picture file cannot be read."""


@dataclass(frozen=True)
class ImageFacts:
    """What is known of one file.

    ``width`` and ``height`` are those after the EXIF orientation is applied, as
    :func:`read_picture` reads it; ``turned`` says that it has one. ``deep`` says that it has 16
    bits a pixel, ``brightest`` is then its largest value, if its pixels were read. ``fault`` is
    None, ``missing`` or a reason why the file cannot be read.
    """

    width: int = 0
    height: int = 0
    turned: bool = False
    deep: bool = False
    brightest: int | None = None
    fault: str | None = None


def read_picture(path: Path | str) -> Image.Image:
    """A picture as training, evaluation, prediction and drawing all read it.

    It is turned as its EXIF orientation says. Grey values of 16 bits become 8 bits by the whole
    range, 65535 being white, and not by the range that the one picture uses: equal values stay
    equal in all pictures of a data set, as measurements must.

    Raises:
        UnreadableImageError: the file is missing or damaged, is so large that Pillow takes it for
            an attack, or has floating-point or 32-bit pixels, whose black and white are unknown.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            _require_known_range(image)
            image.load()
            turn = _TURNS.get(_orientation(image))
            picture = eight_bits(image)
            return picture.copy() if turn is None else picture.transpose(turn)
    except Exception as error:  # Pillow raises nearly anything on a broken file
        raise UnreadableImageError(_reason(error, path)) from error


def examine_images(folder: Path, names: Collection[str], decode: bool) -> dict[str, ImageFacts]:
    """Examines picture files, several at a time; ``names`` are relative to the folder.

    ``decode`` reads every pixel, which finds truncated files, and not headers alone.
    """
    if len(names) > 1000:
        logger.info("Reading %d pictures in %s (once)", len(names), folder)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        examined = pool.map(lambda name: _examine(folder / name, decode), names)
        return dict(zip(names, examined, strict=True))


def _examine(path: Path, decode: bool) -> ImageFacts:
    try:
        if not path.is_file():
            return ImageFacts(fault="missing")
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            _require_known_range(image)
            width, height = image.size
            deep, brightest = _is_deep(image), None
            if decode:
                # A smaller picture from the same data: every byte is read, few pixels computed.
                image.draft(None, (max(1, width // 8), max(1, height // 8)))
                image.load()
                brightest = int(image.getextrema()[1]) if deep else None
            # A PNG's orientation may follow its pixels: not worth decoding for.
            readable = decode or image.format != "PNG" or "exif" in image.info
            orientation = _orientation(image) if readable else 1
    except Exception as error:  # Pillow raises nearly anything on a broken file
        return ImageFacts(fault=_reason(error, path))
    if orientation >= 5:
        width, height = height, width
    return ImageFacts(width, height, orientation in _TURNS, deep, brightest)


def _orientation(image: Image.Image) -> int:
    """Its EXIF orientation; 1, upright, if there is none or its EXIF data are damaged."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as Detectron2 does; its pixels may be whole
        return 1
    return orientation if orientation in _TURNS else 1


def _is_deep(image: Image.Image) -> bool:
    """Whether it is grey with 16 bits; of some formats Pillow makes 32 out of them."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def eight_bits(image: Image.Image) -> Image.Image:
    """The picture in 8 bits, as :func:`read_picture` has it, but not turned.

    Raises:
        UnreadableImageError: its pixels are of a kind whose black and white are unknown.
    """
    _require_known_range(image)
    if not _is_deep(image):
        return image
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _require_known_range(image: Image.Image) -> None:
    if image.mode in ("F", "I") and not _is_deep(image):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise UnreadableImageError(
            f"its pixels are {kind} numbers, of which nobody can tell what is black and what is "
            "white; save it with 8 or 16 bits"
        )


def _reason(error: Exception, path: Path | str) -> str:
    reason = " ".join(str(error).replace(str(path), Path(path).name).split())
    return reason or type(error).__name__
