"""Sizes and faults of a data set's picture files."""

import logging
import os
import warnings
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

logger = logging.getLogger("bucketed_ranking.data")

_TRANSPOSING = (5, 6, 7, 8)


@dataclass(frozen=True)
class ImageFacts:
    """What is known of one file.

    ``width`` and ``height`` are those after the EXIF orientation is applied, as Detectron2 reads
    pictures; ``turned`` says that it has one. ``fault`` is None, ``missing`` or a reason why the
    file cannot be read.
    """

    width: int = 0
    height: int = 0
    turned: bool = False
    fault: str | None = None


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
            width, height = image.size
            # A PNG's orientation may follow its pixels: not worth decoding for.
            readable = decode or image.format != "PNG" or "exif" in image.info
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if readable else 1
            if decode:
                # A smaller picture from the same data: every byte is read, few pixels computed.
                image.draft(None, (max(1, width // 8), max(1, height // 8)))
                image.load()
    except Exception as error:  # Pillow raises nearly anything on a broken file
        reason = " ".join(str(error).replace(str(path), path.name).split())
        return ImageFacts(fault=reason or type(error).__name__)
    if orientation in _TRANSPOSING:
        width, height = height, width
    return ImageFacts(width, height, turned=orientation in (2, 3, 4, *_TRANSPOSING))
