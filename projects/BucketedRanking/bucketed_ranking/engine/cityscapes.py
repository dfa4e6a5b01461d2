"""Evaluation on Cityscapes, by its own measure and its own scripts."""

from collections.abc import Iterable
from importlib import import_module
from typing import Any
from unittest.mock import patch

import numpy as np
from detectron2.evaluation import CityscapesInstanceEvaluator
from detectron2.utils.logger import create_small_table

from ..errors import BucketRankError
from .calibration import MatchedDetections
from .thresholds import Curve, best_f1_threshold


class CityscapesEvaluator(CityscapesInstanceEvaluator):
    """:class:`CityscapesInstanceEvaluator` with the AP of every class and the best threshold.

    See :func:`best_f1_threshold`; it is chosen at IoU 0.5. No file is left behind.
    """

    _matched: MatchedDetections | None = None

    def matched(self) -> MatchedDetections | None:
        """The masks that were counted; None on all but the main process."""
        return self._matched

    def process(self, inputs, outputs):
        for image in inputs:
            if "unreadable" in image:  # its scripts want detections in every picture
                raise BucketRankError(
                    f"The picture {image['file_name']} to evaluate on cannot be read: "
                    f"{image['unreadable']}."
                )
        super().process(inputs, outputs)

    def evaluate(self):
        script = import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
        script.args.quiet = True
        more: dict[str, float] = {}

        def evaluate_and_keep(matches, arguments, evaluate=script.evaluateMatches):
            # One range of distances x classes x IoU thresholds; NaN without ground truth.
            aps = evaluate(matches, arguments)
            for name, of_class in zip(arguments.instLabels, aps[0], strict=True):
                more[f"AP-{name}"] = 100 * float(of_class.mean())
            curves = [class_curve(matches.values(), name) for name in arguments.instLabels]
            more["score_threshold"] = best_f1_threshold(curves)
            of_classes = [class_detections(matches.values(), n)[0] for n in arguments.instLabels]
            self._matched = MatchedDetections(
                *(
                    np.concatenate([getattr(each, field) for each in of_classes])
                    for field in MatchedDetections._fields
                )
            )
            return aps

        with (
            patch.object(script, "evaluateMatches", evaluate_and_keep),
            # It writes its matches, and a cache that a single evaluation has no use for.
            patch.object(script, "writeDict2JSON", lambda *_: None),
            # cityscapesscripts 2.3.0, its last release, asks for what NumPy 2.4 removed.
            patch.object(np, "in1d", np.isin, create=True),
        ):
            results = super().evaluate()
        if results:  # on the main process
            results["segm"] |= more
            table = create_small_table(results["segm"])
            self._logger.info("Evaluation results for segm:\n%s", table)
        return results


def class_curve(images: Iterable[dict[str, Any]], name: str) -> Curve:
    """Precision and recall of a class at IoU 0.5, counted as cityscapesscripts counts them.

    Args:
        images: what its `matchGtWithPreds` gives for each image.
        name: the class.
    """
    detections, num_objects = class_detections(images, name)
    order = np.argsort(-detections.scores, kind="stable")
    hits = np.cumsum(detections.right[order])
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / max(num_objects, 1)
    return Curve(detections.scores[order], precision, recall)


def class_detections(images: Iterable[dict[str, Any]], name: str) -> tuple[MatchedDetections, int]:
    """The detections of a class that count, and how many objects there are; as above."""
    found: list[tuple[int, float, bool]] = []  # picture, score, and whether it is right
    num_objects = 0
    for picture, image in enumerate(images):
        for truth in image["groundTruth"][name]:
            if not _reasons_to_ignore(truth):
                num_objects += 1
                matched = [p["confidence"] for p in truth["matchedPred"] if _iou(p, truth) > 0.5]
                matched.sort(reverse=True)
                # Beside the best, further detections of the object are wrong.
                found += [(picture, score, rank == 0) for rank, score in enumerate(matched)]
        for detection in image["prediction"][name]:
            if not any(_iou(truth, detection) > 0.5 for truth in detection["matchedGt"]):
                ignored = detection["voidIntersection"] + sum(
                    truth["intersection"] * _reasons_to_ignore(truth)
                    for truth in detection["matchedGt"]
                )
                if ignored <= 0.5 * detection["pixelCount"]:
                    found.append((picture, detection["confidence"], False))
    pictures, scores, right = np.array(found, dtype=float).reshape(-1, 3).T
    return MatchedDetections(pictures.astype(int), scores, right.astype(bool)), num_objects


def _reasons_to_ignore(truth: dict[str, Any]) -> int:
    """0 to 2: whether it is a group, and whether it is small; its pixels count for each."""
    return (truth["instID"] < 1000) + (truth["pixelCount"] < 100)


def _iou(match: dict[str, Any], other: dict[str, Any]) -> float:
    """IoU of a ground truth and a detection, of which the first knows the intersection."""
    intersection = match["intersection"]
    return intersection / (match["pixelCount"] + other["pixelCount"] - intersection)
