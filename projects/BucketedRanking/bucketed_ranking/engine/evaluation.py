"""Evaluation of a detector on a registered data set, by the measure of that data set."""

import contextlib
import io
import itertools
import json
import logging
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    inference_on_dataset,
)
from detectron2.utils import comm
from torch import nn

from ..data.catalog import lacks_mask
from ..data.files import write_atomically
from ..errors import BucketRankError

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# AP of LVIS' rare, common and frequent classes.
_RARITIES = ("APr", "APc", "APf")


class DetectionEvaluator(COCOEvaluator):
    """:class:`COCOEvaluator` that also finds the score threshold with the best mean F1.

    Ranking losses fix the order of scores, not their level, so no threshold is right for every
    detector: pictures are drawn at the one that balances precision and recall best, at IoU 0.5,
    over the classes.

    With the task "segm", an object without a mask counts as a crowd, its box as the region.
    """

    def __init__(self, dataset_name: str, *, tasks: tuple[str, ...], output_dir: str):
        """
        Args:
            dataset_name, output_dir: see :class:`COCOEvaluator`.
            tasks: "bbox", "segm"; not left to what the detections hold, as there may be none.
        """
        super().__init__(dataset_name, tasks=tasks, output_dir=output_dir)
        if "segm" in tasks:
            for annotation in filter(lacks_mask, self._coco_api.anns.values()):
                x, y, width, height = annotation["bbox"]
                corners = [x, y, x + width, y, x + width, y + height, x, y + height]
                annotation |= {"iscrowd": 1, "segmentation": [corners]}

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is None:
            # No detection at all: nothing is found, so every AP is 0, not unknown.
            results = dict.fromkeys(results, 0.0)
        else:
            results["score_threshold"] = best_f1_threshold(
                coco_eval.eval["precision"][0, :, :, 0, -1],
                coco_eval.eval["scores"][0, :, :, 0, -1],
                coco_eval.params.recThrs,
            )
        return results


class FederatedEvaluator(LVISEvaluator):
    """:class:`LVISEvaluator` with the AP of every class; no detection at all is AP 0.

    What has no ground truth is NaN, as on COCO; lvis says -1 there.
    """

    def _eval_predictions(self, predictions):
        lvis = import_module("lvis")
        evaluations = []

        class KeptEvaluation(lvis.LVISEval):
            def run(self):
                super().run()
                evaluations.append(self)

        # It warns that it takes results as they are, each time.
        logging.getLogger("lvis.results").setLevel(logging.ERROR)
        with (
            patch.object(lvis, "LVISEval", KeptEvaluation),
            # lvis 0.5.3, its last release, asks for np.float, which NumPy 1.24 removed.
            patch.object(np, "float", float, create=True),
        ):
            super()._eval_predictions(predictions)
        for evaluation in evaluations:
            self._results[evaluation.params.iou_type] |= self._per_class(evaluation)
        silent = not any(prediction["instances"] for prediction in predictions)
        for task, metrics in self._results.items():
            self._results[task] = {
                name: 0.0 if silent else math.nan if ap < 0 else ap for name, ap in metrics.items()
            }

    def _per_class(self, evaluation) -> dict[str, float]:
        """AP of each class, named as Detectron2 does on COCO; negative without ground truth."""
        # IoU thresholds x recall levels x classes x areas, of which the first is "all"; a class
        # without ground truth has -1 everywhere.
        precisions = evaluation.eval["precision"][:, :, :, 0]
        names = [self._metadata.thing_classes[number - 1] for number in evaluation.params.cat_ids]
        return {
            f"AP-{name}": 100 * float(of_class.mean())
            for name, of_class in zip(names, precisions.transpose(2, 0, 1), strict=True)
        }


class CityscapesEvaluator(CityscapesInstanceEvaluator):
    """:class:`CityscapesInstanceEvaluator` with the AP of every class; leaves no file behind."""

    def evaluate(self):
        script = import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
        per_class: dict[str, float] = {}

        def compute_and_keep(aps, arguments, compute=script.computeAverages):
            averages = compute(aps, arguments)
            for name, of_class in averages["classes"].items():
                per_class[f"AP-{name}"] = 100 * float(of_class["ap"])
            return averages

        with (
            patch.object(script, "computeAverages", compute_and_keep),
            # It writes its matches, and a cache that a single evaluation has no use for.
            patch.object(script, "writeDict2JSON", lambda *_: None),
            # cityscapesscripts 2.3.0, its last release, asks for what NumPy 2.4 removed.
            patch.object(np, "in1d", np.isin, create=True),
        ):
            results = super().evaluate()
        if results:  # on the main process
            results["segm"] |= per_class
        return results


def build_evaluator(dataset: str, output_dir: Path, tasks: tuple[str, ...]) -> DatasetEvaluator:
    """The evaluator of "bbox", "segm" that a registered data set's metadata asks for.

    Raises:
        BucketRankError: there is none for its kind.
    """
    kind = MetadataCatalog.get(dataset).evaluator_type
    if kind == "coco":
        return DetectionEvaluator(dataset, tasks=tasks, output_dir=str(output_dir))
    if kind == "lvis":
        return FederatedEvaluator(dataset, tasks=tasks, output_dir=str(output_dir))
    if kind == "cityscapes_instance":
        return CityscapesEvaluator(dataset)
    raise BucketRankError(f"There is no evaluation for '{dataset}', whose kind is {kind!r}.")


def best_f1_threshold(precision: np.ndarray, scores: np.ndarray, recall: np.ndarray) -> float:
    """The score at which the F1 measure, averaged over the classes, is largest.

    Args:
        precision: [R, K], interpolated precision of K classes at R recall levels, -1 for a class
            without ground truth.
        scores: [R, K], the score of the detection that reaches each level; 0 where none does.
        recall: [R], the recall levels.

    Returns:
        The threshold; NaN where no class has a detection.
    """
    known = (precision > -1).all(axis=0)
    precision, scores = precision[:, known], scores[:, known]
    reached = precision > 0
    f1 = 2 * precision * recall[:, None] / np.maximum(precision + recall[:, None], 1e-12)
    candidates = np.unique(scores[reached])
    if not len(candidates):
        return math.nan
    means = []
    for candidate in candidates:
        # Per class, the level reached last among those that the threshold keeps.
        kept = reached & (scores >= candidate)
        last = kept.shape[0] - 1 - kept[::-1].argmax(axis=0)
        means.append(np.where(kept.any(axis=0), f1[last, np.arange(f1.shape[1])], 0).mean())
    return float(candidates[int(np.argmax(means))])


def evaluate_model(
    cfg: CfgNode,
    model: nn.Module,
    dataset: str,
    output_dir: Path,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """Run `model` on a registered data set and measure it.

    On COCO and LVIS, the detections go to `output_dir` in COCO's results format
    (coco_instances_results.json, lvis_instances_results.json).

    Args:
        cfg: a full config.
        model: takes Detectron2's inputs.
        dataset: a registered name.
        output_dir: for the detections.
        on_batch: called after each batch with the number done and the total of this process.

    Returns:
        A dict per task ("bbox", "segm"), in percent: AP, AP50, AP75, APs, APm, APl (NaN where
        there is no ground truth of the kind), "per_class" AP by class name, and
        "score_threshold" (see :class:`DetectionEvaluator`; NaN on LVIS and Cityscapes). On LVIS
        APr, APc and APf too (rare, common, frequent classes); Cityscapes has AP and AP50 of "segm".
        Empty on all but the main process.
    """
    loader = build_detection_test_loader(cfg, dataset, mapper=DatasetMapper(cfg, is_train=False))
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    evaluator = build_evaluator(dataset, output_dir, tasks)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # pycocotools prints its own table
        done = itertools.count(1)
        tell = {"after_inference": lambda: on_batch(next(done), len(loader))}
        results = inference_on_dataset(model, loader, evaluator, tell)
    logger.info("Evaluation on %s:\n%s", dataset, printed.getvalue())
    return {task: _tidy(metrics) for task, metrics in results.items()}


def _tidy(metrics: dict[str, float]) -> dict[str, Any]:
    tidy: dict[str, Any] = {name: metrics.get(name, math.nan) for name in METRICS}
    tidy |= {name: metrics[name] for name in _RARITIES if name in metrics}
    tidy["per_class"] = {
        name.removeprefix("AP-"): ap for name, ap in metrics.items() if name.startswith("AP-")
    }
    tidy["score_threshold"] = metrics.get("score_threshold", math.nan)
    return tidy


def write_results(path: Path, results: Any) -> None:
    """Write `results` as JSON, null for NaN, in one step, on the main process only."""
    if comm.is_main_process():
        write_atomically(path, json.dumps(_without_nan(results), indent=2) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
