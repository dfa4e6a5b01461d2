"""Sizes and faults of a data set's picture files, remembered from call to call."""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from PIL import ExifTags, Image

from .files import cache_folder, write_atomically

logger = logging.getLogger("bucketed_ranking.data")

_VERSION = 1
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


_MISSING = ImageFacts(0, 0, False, fault="missing")


def examine_images(folder: Path, names: Iterable[str], decode: bool) -> dict[str, ImageFacts]:
    """Examines picture files; a file examined before and not changed since is not read again.

    Args:
        folder: what the names are relative to.
        names: file names as the JSON gives them.
        decode: whether to decode every pixel, which finds truncated files, or read headers only.
    """
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    cache = cache_folder() / "images" / f"{digest}.json"
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
        return _MISSING
    return ImageFacts(status.st_size, status.st_mtime_ns, False) if path.is_file() else _MISSING


def _same_file(before: ImageFacts, now: ImageFacts) -> bool:
    return now.fault is None and (before.size, before.modified) == (now.size, now.modified)


def _examine(path: Path, facts: ImageFacts, decode: bool) -> ImageFacts:
    try:
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
        return replace(facts, decoded=decode, fault=reason or type(error).__name__)
    if orientation in _TRANSPOSING:
        width, height = height, width
    turned = orientation in (2, 3, 4, *_TRANSPOSING)
    return replace(facts, decoded=decode, width=width, height=height, turned=turned)


def _load(cache: Path) -> dict[str, ImageFacts]:
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            return {}
        return {name: ImageFacts(*fields) for name, fields in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _save(cache: Path, facts: dict[str, ImageFacts]) -> None:
    files = {name: astuple(fact) for name, fact in facts.items()}
    try:
        content = json.dumps({"version": _VERSION, "files": files}, separators=(",", ":"))
        write_atomically(cache, content)
    except OSError as error:
        logger.warning("What is known of the pictures cannot be kept in %s: %s", cache, error)
