"""What was found in each picture, beside what is there, and what follows from it at IoU 0.5."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torchvision.ops import box_convert, box_iou

from ...data.catalog import category_ids
from ...data.files import read_coco
from ...data.images import UnreadableImageError, read_picture
from ...errors import BucketRankError
from ..evaluation import detections_file, ground_truth, match_at_half
from ..thresholds import Curve

_RECALLS = np.linspace(0, 1, 101)
_KEYS = ("image_id", "category_id", "bbox", "score")


@dataclass(frozen=True)
class Picture:
    """The objects of a picture without crowds, and those detections that count, scores falling."""

    id: int
    path: Path
    boxes: np.ndarray
    """[G, 4] x, y, width, height in pixels, of the objects."""
    classes: np.ndarray
    """[G] class indices."""
    found_boxes: np.ndarray
    """[N, 4] of the detections."""
    found_classes: np.ndarray
    scores: np.ndarray
    """[N] as the detector gives them."""
    match: np.ndarray
    """[N] the object, 0..G-1, that each detection finds at IoU 0.5; -1: it is wrong."""

    @cached_property
    def iou(self) -> np.ndarray:
        """[N, G] of detections and objects."""
        found, there = (
            box_convert(torch.from_numpy(boxes), "xywh", "xyxy")
            for boxes in (self.found_boxes, self.boxes)
        )
        return box_iou(found, there).numpy()

    def kept(self, threshold: float) -> "Picture":
        """With the detections of this score or more alone."""
        count = int((self.scores >= threshold).sum())
        found = (self.found_boxes, self.found_classes, self.scores, self.match)
        return Picture(
            self.id, self.path, self.boxes, self.classes, *(each[:count] for each in found)
        )

    @property
    def missed(self) -> np.ndarray:
        """[G] bool: the objects that no detection finds."""
        return ~np.isin(np.arange(len(self.boxes)), self.match)


def load_pictures(
    dataset: str, folder: Path, tasks: Sequence[str], num_unreadable: int = 0
) -> list[Picture] | None:
    """Match the boxes that an evaluation has left in `folder` with those of its data set.

    Args:
        dataset: registered.
        tasks: that were evaluated; see :class:`DetectionEvaluator` for what "segm" changes.
        num_unreadable: pictures that it left out because they could not be read.

    Returns:
        None where it leaves none, as that of Cityscapes.

    Raises:
        BucketRankError: the file is damaged.
    """
    metadata = MetadataCatalog.get(dataset)
    file = detections_file(folder, metadata.evaluator_type)
    if not file.is_file() or "bbox" not in tasks:
        return None
    try:
        results = [{key: r[key] for key in _KEYS} for r in json.loads(file.read_text())]
    except ValueError as error:
        raise BucketRankError(
            f"{file} is damaged ({error}); remove {folder}, and `bucketrank report` evaluates anew."
        ) from error
    objects = ground_truth(read_coco(Path(metadata.json_file)), tasks)
    indices = {category: index for index, category in enumerate(category_ids(dataset))}
    records = sorted(DatasetCatalog.get(dataset), key=lambda record: record["image_id"])
    paths = {record["image_id"]: Path(record["file_name"]) for record in records}
    if num_unreadable:
        with_results = {each["image_id"] for each in results}
        paths = {id: p for id, p in paths.items() if id in with_results or _is_readable(p)}
    there, found = defaultdict(list), defaultdict(list)
    for each in objects.anns.values():
        if not each.get("iscrowd"):  # which LVIS does not have
            there[each["image_id"]].append(each)
    lvis = metadata.evaluator_type == "lvis"
    detections = objects.loadRes(results)
    for each, match in match_at_half(objects, detections, list(paths), lvis_style=lvis):
        found[each["image_id"]].append((each, match))
    pictures = []
    for id, path in paths.items():
        rows = sorted(found[id], key=lambda row: -row[0]["score"])
        place = {each["id"]: index for index, each in enumerate(there[id])}
        dets = [each for each, _ in rows]
        pictures.append(
            Picture(
                id,
                path,
                *_boxes_and_classes(there[id], indices),
                *_boxes_and_classes(dets, indices),
                np.array([each["score"] for each in dets], dtype=float),
                np.array([place.get(match, -1) for _, match in rows], dtype=int),
            )
        )
    return pictures


def _is_readable(path: Path) -> bool:
    try:
        read_picture(path)
    except UnreadableImageError:
        return False
    return True


def _boxes_and_classes(
    annotations: Sequence[dict[str, Any]], indices: dict[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.array([each["bbox"] for each in annotations], dtype=float).reshape(-1, 4)
    return boxes, np.array([indices[each["category_id"]] for each in annotations], dtype=int)


def class_curves(pictures: Sequence[Picture], num_classes: int) -> list[tuple[Curve, int]]:
    """The curve of each class at IoU 0.5, and how many objects it has."""
    classes, scores, match = (
        np.concatenate([np.empty(0, kind), *(getattr(picture, name) for picture in pictures)])
        for name, kind in (("found_classes", int), ("scores", float), ("match", int))
    )
    counts = count_objects(pictures, num_classes)
    return list(zip(curves_of(classes, scores, match >= 0, counts), counts.tolist(), strict=True))


def count_objects(pictures: Sequence[Picture], num_classes: int) -> np.ndarray:
    """[C] objects of each class."""
    return sum(
        (np.bincount(picture.classes, minlength=num_classes) for picture in pictures),
        np.zeros(num_classes, dtype=int),
    )


def curves_of(
    classes: np.ndarray, scores: np.ndarray, right: np.ndarray, num_objects: np.ndarray
) -> list[Curve]:
    """Precision and recall of detections [N] by class; equal scores in the order given."""
    order = np.lexsort((-scores, classes))
    starts = np.searchsorted(classes[order], np.arange(1, len(num_objects)))
    curves = []
    for rows, count in zip(np.split(order, starts), num_objects, strict=True):
        hits = np.cumsum(right[rows])
        precision = hits / np.arange(1, len(hits) + 1)
        curves.append(Curve(scores[rows], precision, hits / max(count, 1)))
    return curves


def average_precision(curve: Curve, num_objects: int) -> float:
    """COCO's, in percent: mean precision at 101 levels of recall; NaN where there is no object."""
    if not num_objects:
        return math.nan
    precision = np.append(np.maximum.accumulate(curve.precision[::-1])[::-1], 0.0)
    return 100 * float(precision[np.searchsorted(curve.recall, _RECALLS)].mean())
