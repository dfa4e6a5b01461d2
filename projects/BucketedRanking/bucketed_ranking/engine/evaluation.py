"""Evaluation of a detector on a registered data set, by the measure of that data set."""

import itertools
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.utils import comm
from faster_coco_eval import COCO, COCOeval_faster
from torch import nn

from ..data.catalog import category_ids
from ..data.files import write_atomically
from ..errors import BucketRankError
from .calibration import MatchedDetections
from .cityscapes import CityscapesEvaluator
from .image_workers import fork_workers
from .mapper import EvaluationMapper
from .thresholds import Curve, best_f1_threshold

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# LVIS: AP of the rare, common and frequent classes.
_FREQUENCIES = ("APr", "APc", "APf")
# Detections that LVIS counts in an image, of all classes together, and COCO of each class.
_LVIS_LIMIT, _COCO_LIMIT = 300, 100


class DetectionEvaluator(COCOEvaluator):
    """:class:`COCOEvaluator` with faster-coco-eval in place of pycocotools; also for LVIS.

    faster-coco-eval gives the numbers of pycocotools and of the package lvis in less time, and
    needs nothing of Detectron2 to be compiled. On LVIS, the results also have APr, APc and APf.

    Beside Detectron2's, the results have the AP by class also where there is but one class, and
    "score_threshold": that of the best F1 at IoU 0.5, see :func:`best_f1_threshold`.

    Pictures that could not be read (see :class:`EvaluationMapper`) are left out with their objects,
    named in a warning and counted in the results, "unreadable_images".

    With the task "segm", what has no mask counts as a crowd, its box as the region.
    """

    def __init__(self, dataset_name: str, *, tasks: tuple[str, ...], output_dir: str):
        """See :class:`COCOEvaluator`; `tasks` are not left to the detections: there may be none."""
        self._lvis_style = MetadataCatalog.get(dataset_name).evaluator_type == "lvis"
        super().__init__(
            dataset_name,
            tasks=tasks,
            output_dir=output_dir,
            max_dets_per_image=_LVIS_LIMIT if self._lvis_style else None,
            use_fast_impl=False,  # Detectron2's own, which would have to be compiled
        )
        self._evaluations: dict[str, COCOeval_faster] = {}
        self._coco_api = ground_truth(self._coco_api.dataset, tasks)
        self._category_ids = category_ids(dataset_name)

    def process(self, inputs, outputs):
        for image, output in zip(inputs, outputs, strict=True):
            if "unreadable" in image:
                why = {key: image[key] for key in ("image_id", "file_name", "unreadable")}
                self._predictions.append({**why, **dict.fromkeys(output, ())})
            else:
                super().process([image], [output])

    def _eval_box_proposals(self, predictions):
        super()._eval_box_proposals(self._leave_out_unreadable(predictions))

    def _eval_predictions(self, predictions, img_ids=None):
        results = []
        for prediction in self._leave_out_unreadable(predictions):
            found = prediction["instances"]
            if self._lvis_style:
                found = sorted(found, key=lambda result: -result["score"])[:_LVIS_LIMIT]
            for result in found:
                category = self._category_ids[result["category_id"]]
                results.append({**result, "category_id": category})
        path = detections_file(Path(self._output_dir), self._metadata.evaluator_type)
        path.write_text(json.dumps(results))
        for task in self._tasks:
            evaluation = self._evaluations[task] = self._evaluate_task(results, task)
            self._results[task] = self._derive_coco_results(
                evaluation, task, self._metadata.thing_classes
            )

    def matched(self) -> MatchedDetections | None:
        """The boxes that were counted; None on all but the main process."""
        return _matched(self._evaluations["bbox"]) if self._evaluations else None

    def _leave_out_unreadable(self, predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The predictions of pictures that could be read; counts the others, which it warns of."""
        unreadable = [p for p in predictions if "unreadable" in p]
        if unreadable:
            message = (
                f"{len(unreadable)} of the {len(predictions)} pictures to evaluate on cannot be "
                f"read, such as {unreadable[0]['file_name']} ({unreadable[0]['unreadable']})"
            )
            if len(unreadable) == len(predictions):
                raise BucketRankError(f"{message}; `bucketrank dataset check` says why.")
            logger.warning("%s; the results leave them out", message)
        self._num_unreadable = len(unreadable)
        left_out = {prediction["image_id"] for prediction in unreadable}
        self._image_ids = [i for i in self._coco_api.getImgIds() if i not in left_out]
        return [p for p in predictions if "unreadable" not in p]

    def _evaluate_task(self, results: list[dict[str, Any]], task: str) -> COCOeval_faster:
        # Small, medium and large masks are told by the area of their boxes, if they have any.
        left_out = "bbox" if task == "segm" else None
        detections = [{k: v for k, v in result.items() if k != left_out} for result in results]
        lines: list[str] = []
        evaluation = COCOeval_faster(
            self._coco_api,
            self._coco_api.loadRes(detections),
            task,
            print_function=lines.append,
            lvis_style=self._lvis_style,
        )
        evaluation.params.maxDets = self._max_dets_per_image
        evaluation.params.imgIds = self._image_ids
        evaluation.run()
        logger.info("Evaluation of %s:\n%s", task, "\n".join(lines))
        return evaluation

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if len(class_names) == 1:  # Detectron2 leaves it out
            results[f"AP-{class_names[0]}"] = results["AP"]
        if self._lvis_style:
            for name in _FREQUENCIES:
                ap = coco_eval.stats_as_dict[name]
                results[name] = 100 * ap if ap >= 0 else math.nan
        results["score_threshold"] = best_f1_threshold(_curves(coco_eval))
        results["unreadable_images"] = self._num_unreadable
        return results


def _curves(evaluation: COCOeval_faster) -> Iterator[Curve]:
    """The curve of each class at IoU 0.5 and over all areas, at COCO's recall levels."""
    precisions = evaluation.eval["precision"][0, :, :, 0, -1]
    scores = evaluation.eval["scores"][0, :, :, 0, -1]
    for precision, score in zip(precisions.T, scores.T, strict=True):
        reached = precision > 0
        yield Curve(score[reached], precision[reached], evaluation.params.recThrs[reached])


def detections_file(folder: Path, evaluator_type: str) -> Path:
    """Where an evaluation leaves its detections, in COCO's results format."""
    return folder / f"{evaluator_type}_instances_results.json"


def ground_truth(content: dict[str, Any], tasks: Sequence[str]) -> COCO:
    """The objects of a COCO JSON as they are counted; see :class:`DetectionEvaluator`."""
    coco = COCO(content)
    if "segm" in tasks:
        for annotation in coco.anns.values():
            if annotation.get("segmentation"):
                continue
            x, y, width, height = annotation["bbox"]
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotation |= {"iscrowd": 1, "segmentation": [corners]}
    return coco


def match_at_half(
    objects: COCO,
    detections: COCO,
    image_ids: Sequence[int],
    task: str = "bbox",
    lvis_style: bool = False,
) -> Iterator[tuple[dict[str, Any], int | None]]:
    """The detections that count, each with the id of the object that it finds at IoU 0.5, if any.

    An evaluation at several IoUs pools its matches, hence another one at that IoU alone.
    """
    evaluation = COCOeval_faster(
        objects, detections, task, print_function=lambda line: None, lvis_style=lvis_style
    )
    params = evaluation.params
    params.maxDets, params.imgIds = [_LVIS_LIMIT if lvis_style else _COCO_LIMIT], image_ids
    params.iouThrs = np.array([0.5])
    params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
    evaluation.evaluate()
    object_of = dict(map(int, pair.split("_")) for pair in evaluation.eval["matched"])
    for each in detections.anns.values():
        found = object_of.get(each["id"])
        # LVIS: of classes that were not looked for in a picture, or not to the end, none is wrong.
        unknown = each.get("drop") or (found is None and each.get("lvis_mark"))
        if not (unknown or (found is not None and objects.anns[found].get("iscrowd"))):
            yield each, found


def _matched(evaluation: COCOeval_faster) -> MatchedDetections:
    params = evaluation.params
    found = match_at_half(
        evaluation.cocoGt,
        evaluation.cocoDt,
        params.imgIds,
        params.iouType,
        evaluation.lvis_style,
    )
    rows = [(each["image_id"], each["score"], match is not None) for each, match in found]
    pictures, scores, right = zip(*rows, strict=True) if rows else ((), (), ())
    return MatchedDetections(
        np.array(pictures, dtype=int), np.array(scores, dtype=float), np.array(right, dtype=bool)
    )


def evaluate_model(
    cfg: CfgNode,
    model: nn.Module,
    dataset: str,
    output_dir: Path,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    on_matched: Callable[[MatchedDetections], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run `model` on a registered data set and measure it.

    On COCO and LVIS, the detections go to `output_dir` in COCO's results format
    (coco_instances_results.json, lvis_instances_results.json).

    Args:
        on_batch: called after each batch with the number done and the total of this process.
        on_matched: called on the main process with the detections that were counted.

    Returns:
        A dict per task ("bbox", "segm"), in percent: METRICS (NaN where there is no ground truth
        of the kind), "per_class" AP by class name, "score_threshold", that of the best F1 at
        IoU 0.5, and "unreadable_images", the number of those left out. On LVIS APr, APc and APf
        too (rare, common, frequent classes); Cityscapes, which leaves none out, has AP and AP50
        of "segm". MODEL.META_ARCHITECTURE "ProposalNetwork" has "box_proposals" alone: Detectron2's
        average recall of its first 100 and 1,000 proposals a picture, "AR@100", "ARs@100", ...
        Empty on all but the main process.
    """
    loader = build_detection_test_loader(cfg, dataset, mapper=EvaluationMapper(cfg))
    fork_workers(loader)
    if MetadataCatalog.get(dataset).evaluator_type == "cityscapes_instance":
        evaluator = CityscapesEvaluator(dataset)
    else:
        tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
        evaluator = DetectionEvaluator(dataset, tasks=tasks, output_dir=str(output_dir))
    done = itertools.count(1)
    callbacks = {"after_inference": lambda: on_batch(next(done), len(loader))}
    results = inference_on_dataset(model, loader, evaluator, callbacks)
    if on_matched is not None and (matched := evaluator.matched()) is not None:
        on_matched(matched)
    return {
        task: metrics if task == "box_proposals" else _tidy(metrics)
        for task, metrics in results.items()
    }


def _tidy(metrics: dict[str, float]) -> dict[str, Any]:
    tidy: dict[str, Any] = {name: metrics.get(name, math.nan) for name in METRICS}
    tidy |= {name: metrics[name] for name in _FREQUENCIES if name in metrics}
    tidy["per_class"] = {
        name.removeprefix("AP-"): ap for name, ap in metrics.items() if name.startswith("AP-")
    }
    counts = ("score_threshold", "unreadable_images")
    return tidy | {name: metrics[name] for name in counts if name in metrics}


def score_threshold(tasks: dict[str, dict[str, Any]]) -> float:
    """That of the best F1 in the results of :func:`evaluate_model`: of the boxes if there are."""
    return tasks.get("bbox", tasks.get("segm"))["score_threshold"]


def write_results(path: Path, results: Any) -> None:
    """Write `results` as JSON, null for NaN, in one step, on the main process only."""
    if comm.is_main_process():
        # Python writes NaN, which is no JSON, but calls a function for it when it reads.
        results = json.loads(json.dumps(results), parse_constant=lambda name: None)
        write_atomically(path, json.dumps(results, indent=2) + "\n")
