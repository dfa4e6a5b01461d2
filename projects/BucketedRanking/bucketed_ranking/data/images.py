"""What the picture files of a data set are really like, remembered from call to call."""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bucketed_ranking.data.files import cache_folder, write_atomically

logger = logging.getLogger("bucketed_ranking.data")

_VERSION = 1
_EXIF_ORIENTATION = 0x0112
_TRANSPOSING = (5, 6, 7, 8)


@dataclass(frozen=True)
class ImageFacts:
    """What is known of one file.

    ``width`` and ``height`` are those after the EXIF orientation is applied, as Detectron2 reads
    pictures; ``turned`` says that it has one. ``fault`` is None, ``missing`` or a reason why the
    file cannot be read. ``size`` (bytes) and ``modified`` (ns) tell whether the file has changed.
    """

    size: int
    modified: int
    decoded: bool
    width: int = 0
    height: int = 0
    turned: bool = False
    fault: str | None = None


def examine_images(folder: Path, names: Iterable[str], decode: bool) -> dict[str, ImageFacts]:
    """Examines picture files; a file examined before and not changed since is not read again.

    Args:
        folder: what the names are relative to.
        names: file names as the JSON gives them.
        decode: whether to decode every pixel, which finds truncated files, or read headers only.
    """
    cache = cache_folder() / "images" / f"{_digest(str(folder))}.json"
    known = _load(cache)
    facts: dict[str, ImageFacts] = {}
    todo: list[str] = []
    for name in names:
        facts[name] = _stat(folder / name)
        before = known.get(name)
        if before and _same_file(before, facts[name]) and (before.decoded or not decode):
            facts[name] = before
        elif facts[name].fault is None:
            todo.append(name)
    if not todo:
        return facts
    if len(todo) > 1000:
        logger.info("Reading %d pictures in %s (once)", len(todo), folder)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        examined = pool.map(lambda name: _examine(folder / name, facts[name], decode), todo)
        facts.update(zip(todo, examined, strict=True))
    _save(cache, known | {name: fact for name, fact in facts.items() if fact.fault != "missing"})
    return facts


def _stat(path: Path) -> ImageFacts:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ImageFacts(0, 0, False, fault="missing")
    if not path.is_file():
        return ImageFacts(0, 0, False, fault="missing")
    return ImageFacts(status.st_size, status.st_mtime_ns, False)


def _same_file(before: ImageFacts, now: ImageFacts) -> bool:
    return now.fault is None and (before.size, before.modified) == (now.size, now.modified)


def _examine(path: Path, facts: ImageFacts, decode: bool) -> ImageFacts:
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            width, height = image.size
            orientation = _orientation(image, decode)
            if decode:
                # A smaller picture from the same data: every byte is read, few pixels computed.
                image.draft(None, (max(1, width // 8), max(1, height // 8)))
                image.load()
    except Exception as error:  # Pillow raises nearly anything on a broken file
        reason = " ".join(str(error).replace(str(path), path.name).split())
        fault = reason or type(error).__name__
        return ImageFacts(facts.size, facts.modified, decode, fault=fault)
    if orientation in _TRANSPOSING:
        width, height = height, width
    turned = orientation in (2, 3, 4, *_TRANSPOSING)
    return ImageFacts(facts.size, facts.modified, decode, width, height, turned)


def _orientation(image: Image.Image, decode: bool) -> int:
    """The EXIF orientation; 1 is upright. A PNG's may follow its pixels: not worth decoding for."""
    if image.format == "PNG" and "exif" not in image.info and not decode:
        return 1
    return int(image.getexif().get(_EXIF_ORIENTATION, 1))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _load(cache: Path) -> dict[str, ImageFacts]:
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            return {}
        return {name: ImageFacts(*fields) for name, fields in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _save(cache: Path, facts: dict[str, ImageFacts]) -> None:
    rows = {
        name: [f.size, f.modified, f.decoded, f.width, f.height, f.turned, f.fault]
        for name, f in facts.items()
    }
    content = {"version": _VERSION, "files": rows}
    try:
        write_atomically(cache, json.dumps(content, separators=(",", ":")))
    except OSError as error:
        logger.warning("What is known of the pictures cannot be kept in %s: %s", cache, error)
