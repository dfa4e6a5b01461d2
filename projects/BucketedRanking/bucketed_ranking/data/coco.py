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
from .fields import file_name, identity
from .files import read_coco, user_folder, write_atomically
from .images import examine_images

VERSION = 5
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
    category_ids: list[int]
    class_names: list[str]
    num_images: int
    num_annotations: int
    has_masks: bool
    skipped: dict[str, int] = field(default_factory=dict)
    evaluator: str = "coco"

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def as_dict(self) -> dict[str, Any]:
        """All of it in plain types, for JSON."""
        paths = {"json": str(self.json), "images": str(self.images)}
        return {**asdict(self), **paths, "num_classes": self.num_classes}


def check_dataset(entry: DatasetEntry) -> CheckReport:
    """Looks for everything that would stop or spoil training; never raises for what it finds."""
    try:
        _, record = _cleaned(entry)
    except BucketRankError as error:
        unreadable = Finding("unreadable JSON", 1, [str(error)])
        return CheckReport(entry.name, entry.json, 0, 0, [unreadable])
    findings = [Finding(*values) for values in record["findings"]]
    return CheckReport(entry.name, entry.json, *record["sizes"], findings)


def clean_dataset(entry: DatasetEntry) -> DatasetInfo:
    """Describes a data set as training takes it; of a user's JSON, writes a clean copy.

    Data sets that come with this package or Detectron2 are taken as they are. The copy lies in the
    cache folder, and is found again as long as the JSON, the pictures and this module's version
    stay the same. In it, every annotation has an id of its own, a box inside its picture, an area
    and an ``iscrowd`` flag; a data set held out from one JSON has only its part.

    Raises:
        BucketRankError: if the JSON cannot be read or nothing usable is left.
    """
    if not entry.is_users:
        file = _cache_file(entry, [str(entry.json), _stamp(entry.json)], ".summary.json")
        if not file.is_file():
            write_atomically(file, json.dumps(_describe(read_coco(entry.json), {})))
        fields = json.loads(file.read_text(encoding="utf-8"))
        return DatasetInfo(entry.name, entry.json, entry.images, **fields)
    path, record = _cleaned(entry)
    if record["complaint"] is not None:
        raise BucketRankError(record["complaint"])
    return DatasetInfo(entry.name, path, entry.images, **record["info"])


def _cleaned(entry: DatasetEntry) -> tuple[Path, dict[str, Any]]:
    """The path of a user's clean copy, and what cleaning found, made unless they are there."""
    content = read_coco(entry.json)
    if entry.part is not None:
        content = _part(content, entry.part, entry.val_fraction or 0.0)
    names = list(dict.fromkeys(filter(None, map(file_name, content["images"]))))
    decode = len(names) <= DECODE_UP_TO
    pictures = [(name, _stamp(entry.images / name)) for name in names]
    source = [str(entry.json), _stamp(entry.json), str(entry.images), pictures]
    path = _cache_file(entry, [VERSION, entry.part, entry.val_fraction, decode, *source], ".json")
    file = path.with_suffix(".findings.json")
    if file.is_file():
        record = json.loads(file.read_text(encoding="utf-8"))
        if path.is_file() or not record["copied"]:
            return path, record
    cleaner = DatasetCleaner(entry, content, examine_images(entry.images, names, decode))
    found = cleaner.findings
    usable = "nothing usable" not in found
    record = {
        "sizes": [len(content["images"]), len(content["annotations"])],
        "findings": [
            (found[k].kind, found[k].count, found[k].examples) for k in KINDS if k in found
        ],
        "complaint": None if usable else cleaner.complaint(),
        "copied": usable and entry.is_users,
        "info": _describe(cleaner.clean, cleaner.skipped),
    }
    if record["copied"]:
        write_atomically(path, json.dumps(cleaner.clean, separators=(",", ":")))
    write_atomically(file, json.dumps(record))
    return path, record


def _part(content: dict[str, Any], part: str, val_fraction: float) -> dict[str, Any]:
    """The training or validation part. A picture's place depends on its file name alone."""
    names = {name for name in map(file_name, content["images"]) if name}
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = min(max(1, round(len(ordered) * val_fraction)), max(0, len(ordered) - 1))
    val_names = set(ordered[:held_out])
    val_ids = {identity(i.get("id")) for i in content["images"] if file_name(i) in val_names}
    is_val = part == "val"
    return content | {
        "images": [i for i in content["images"] if (file_name(i) in val_names) == is_val],
        "annotations": [
            a
            for a in content["annotations"]
            if (isinstance(a, dict) and identity(a.get("image_id")) in val_ids) == is_val
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
        "skipped": dict(skipped),  # of a Counter, Python 3.11's asdict makes another
    }


def _cache_file(entry: DatasetEntry, state: list[Any], suffix: str) -> Path:
    """A file in the cache folder whose name changes with the state."""
    digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]
    return user_folder("cache") / "clean" / f"{entry.name}-{digest}{suffix}"


def _stamp(path: Path) -> list[int] | None:
    """Tells whether a file has changed: its size in bytes and its time in ns; None if missing."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]
