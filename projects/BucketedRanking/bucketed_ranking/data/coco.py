"""Checks COCO-format data sets and writes clean copies of their JSON; needs no Detectron2.

Detectron2's loader and pycocotools stop at the first thing they do not expect, often with an
assertion. Here every such thing is counted and shown (:func:`check_dataset`), and left out or
mended in a copy (:func:`clean_dataset`); the user's files are only ever read.

Rules: a box is degenerate if its width or height is not a positive, finite number; boxes are cut
at the picture's edge, and one of which less than a pixel's width or height is left lies outside;
a box within the picture that is thinner than a pixel is reported and kept, as COCO's own are. Data
sets of up to 5000 pictures have every picture decoded, larger ones have their headers read.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BucketRankError
from .cleaning import KINDS, DatasetCleaner, Finding
from .entries import DatasetEntry
from .fields import file_name
from .files import cache_folder, read_coco, write_atomically
from .images import ImageFacts, examine_images

VERSION = 1
DECODE_UP_TO = 5000


@dataclass
class CheckReport:
    """What a check found. ``num_images`` and ``num_annotations`` count what the JSON holds."""

    name: str
    json: Path
    num_images: int
    num_annotations: int
    findings: list[Finding]

    @property
    def problems(self) -> list[Finding]:
        """The findings that cleaning has to do something about: errors and warnings."""
        return [finding for finding in self.findings if finding.severity != "note"]

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "json": str(self.json), "ok": self.ok}


@dataclass(frozen=True)
class DatasetInfo:
    """What training, evaluation and ``show`` take from a data set.

    Attributes:
        name: its name.
        json, images: the files that are used. Detectron2 and pycocotools take the JSON without
            complaint, except that of Cityscapes, which is a folder.
        category_ids: the JSON's own, ascending.
        class_names: in the order of ids, which is that of the contiguous class indices.
        num_images, num_annotations: how many the JSON holds.
        has_masks: whether every annotation that is not a crowd has a mask.
        skipped: how many records cleaning left out, per reason (the keys of ``KINDS``, and
            ``annotation of a skipped image``).
        evaluator: Detectron2's evaluator type, ``coco``, ``lvis`` or ``cityscapes_instance``.
    """

    name: str
    json: Path
    images: Path
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    num_images: int
    num_annotations: int
    has_masks: bool
    skipped: dict[str, int] = field(default_factory=dict)
    evaluator: str = "coco"

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def check_dataset(entry: DatasetEntry) -> CheckReport:
    """Looks for everything that would stop or spoil training; never raises for what it finds."""
    try:
        content, facts = _open(entry)
    except BucketRankError as error:
        unreadable = Finding("unreadable JSON", 1, [str(error)])
        return CheckReport(entry.name, entry.json, 0, 0, [unreadable])
    found = DatasetCleaner(entry, content, facts).findings
    sizes = len(content["images"]), len(content["annotations"])
    findings = [found[kind] for kind in KINDS if kind in found]
    return CheckReport(entry.name, entry.json, *sizes, findings)


def clean_dataset(entry: DatasetEntry) -> DatasetInfo:
    """Writes a clean copy of the JSON into the cache folder, unless it is there already.

    The copy is found again as long as the JSON, the pictures and this module's version stay the
    same. In it, every annotation has an id of its own, a box inside its picture, an area and an
    ``iscrowd`` flag; a data set held out from one JSON has only its part.

    Raises:
        BucketRankError: if the JSON cannot be read or nothing usable is left.
    """
    content, facts = _open(entry)
    path = _cache_file(entry, _fingerprint(entry, facts), ".json")
    record = path.with_suffix(".summary.json")
    if not (path.is_file() and record.is_file()):
        cleaner = DatasetCleaner(entry, content, facts)
        if "nothing usable" in cleaner.findings:
            raise BucketRankError(cleaner.complaint())
        write_atomically(path, json.dumps(cleaner.clean, separators=(",", ":")))
        write_atomically(record, json.dumps(_describe(cleaner.clean, cleaner.skipped)))
    return _read_info(entry, path, record)


def describe_dataset(entry: DatasetEntry) -> DatasetInfo:
    """What the JSON holds, taken as it is: for data sets that need no cleaning.

    Raises:
        BucketRankError: if the JSON cannot be read.
    """
    key = _hash(str(entry.json), _stamp(entry.json))
    record = _cache_file(entry, key, ".summary.json")
    if not record.is_file():
        write_atomically(record, json.dumps(_describe(read_coco(entry.json), {})))
    return _read_info(entry, entry.json, record)


def _open(entry: DatasetEntry) -> tuple[dict[str, Any], dict[str, ImageFacts]]:
    """The JSON's content, cut down to the entry's part, and what is known of its pictures."""
    content = read_coco(entry.json)
    if entry.part is not None:
        content = _part(content, entry.part, entry.val_fraction or 0.0)
    names = dict.fromkeys(filter(None, map(file_name, content["images"])))
    return content, examine_images(entry.images, names, decode=len(names) <= DECODE_UP_TO)


def _part(content: dict[str, Any], part: str, val_fraction: float) -> dict[str, Any]:
    """The training or validation part. A picture's place depends on its file name alone."""
    names = {name for name in map(file_name, content["images"]) if name}
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = min(max(1, round(len(ordered) * val_fraction)), max(0, len(ordered) - 1))
    val_names = set(ordered[:held_out])
    in_val = [file_name(image) in val_names for image in content["images"]]
    val_ids = {str(i.get("id")) for i, val in zip(content["images"], in_val, strict=True) if val}
    wanted = part == "val"
    return {
        **content,
        "images": [i for i, val in zip(content["images"], in_val, strict=True) if val == wanted],
        "annotations": [
            a
            for a in content["annotations"]
            if (isinstance(a, dict) and str(a.get("image_id")) in val_ids) == wanted
        ],
    }


def _describe(content: dict[str, Any], skipped: dict[str, int]) -> dict[str, Any]:
    """The fields of a DatasetInfo that a JSON's content gives."""
    categories = sorted(content["categories"], key=lambda category: category["id"])
    own = [a for a in content["annotations"] if not a.get("iscrowd")]
    return {
        "category_ids": [category["id"] for category in categories],
        "class_names": [category["name"] for category in categories],
        "num_images": len(content["images"]),
        "num_annotations": len(content["annotations"]),
        "has_masks": bool(own) and all(a.get("segmentation") for a in own),
        "skipped": skipped,
    }


def _read_info(entry: DatasetEntry, path: Path, record: Path) -> DatasetInfo:
    fields = json.loads(record.read_text(encoding="utf-8"))
    fields |= {key: tuple(fields[key]) for key in ("category_ids", "class_names")}
    return DatasetInfo(entry.name, path, entry.images, **fields)


def _cache_file(entry: DatasetEntry, key: str, suffix: str) -> Path:
    return cache_folder() / "clean" / f"{entry.name}-{key}{suffix}"


def _fingerprint(entry: DatasetEntry, facts: dict[str, ImageFacts]) -> str:
    """Changes whenever the clean JSON would: with the JSON, a picture, the part or this module."""
    pictures = sorted((name, f.size, f.modified, f.decoded) for name, f in facts.items())
    part = f"{entry.part} {entry.val_fraction}"
    source = f"{entry.json} {entry.images}"
    return _hash(str(VERSION), source, part, _stamp(entry.json), json.dumps(pictures))


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise BucketRankError(f"There is no JSON at {path}.") from error
    return f"{status.st_size} {status.st_mtime_ns}"


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
