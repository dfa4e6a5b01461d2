"""Load a trained detector, evaluate it on data sets, detect objects in images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from ..data.catalog import register, require_masks
from ..data.coco import DatasetInfo
from ..data.registry import DatasetEntry, members
from ..environment import choose_device
from ..errors import BucketRankError
from ..zoo import find_config
from .calibration import MatchedDetections
from .checkpoint import BEST, SafeCheckpointer, chosen_checkpoint
from .evaluation import evaluate_model, score_threshold, write_results
from .run_calibration import Calibration, calibrate_run, find_calibration, measure
from .run_folder import RECORD, RESULTS, has_ap, is_run, read_config, read_json, read_metrics
from .run_logging import run_logging
from .setup import check_values, load_config, merge_options, set_num_classes

# Pictures are drawn at this score where no evaluation has found a better one.
DEFAULT_SCORE_THRESHOLD = 0.3


@dataclass(frozen=True)
class TrainedDetector:
    """A model in evaluation mode, its config, its weights and its run folder, if it has one."""

    cfg: CfgNode
    model: nn.Module
    weights: str
    run_dir: Path | None
    iterations: int | None = None
    """After how many of its run the weights were saved; None: not known."""
    calibration: Calibration | None = None
    """Of its weights' scores; None: they were not evaluated on the validation data of a run."""

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of run.json; empty without a run folder."""
        return read_json(self.run_dir / RECORD) if self.run_dir else {}

    def describe_weights(self) -> str:
        """The path or URL of the weights, and which of the run's they are."""
        if self.iterations is None:
            return self.weights
        best = "the best, " if Path(self.weights).stem == BEST else ""
        averaged = ", averaged" if self.cfg.SOLVER.EMA_DECAY else ""
        return f"{self.weights} ({best}after {self.iterations} iterations{averaged})"


def load_detector(
    run_dir: str,
    *,
    weights: str | None = None,
    device: str | None = None,
    options: Sequence[str] = (),
) -> TrainedDetector:
    """Load the detector of a run.

    Args:
        weights: path or URL of a checkpoint, or "best" or "last"; None takes the best of the run
            where it was evaluated in between, else the last.
        device: see :func:`choose_device`.
        options: KEY VALUE pairs that override the config.

    Raises:
        BucketRankError: the run does not exist; the weights are missing, unsafe or of another
            detector.
    """
    path = Path(run_dir)
    if not is_run(path):
        raise BucketRankError(
            f"There is no run in {path}: it holds no run.json; name the output folder of a "
            "`bucketrank train`."
        )
    cfg = read_config(path)
    merge_options(cfg, options)
    check_values(cfg)
    cfg.MODEL.DEVICE = choose_device(device)
    if weights not in (None, "best", "last"):
        return build_detector(cfg, weights, path)
    chosen = chosen_checkpoint(path, weights)
    if chosen is None:
        raise BucketRankError(
            f"The run in {path} has no checkpoint yet; go on with its training first (--resume)."
        )
    iterations = min(chosen.iterations, cfg.SOLVER.MAX_ITER)  # see `best_threshold`
    return build_detector(cfg, str(chosen.path), path, iterations)


def build_detector(
    cfg: CfgNode, weights: str, run_dir: Path | None = None, iterations: int | None = None
) -> TrainedDetector:
    """Build the model of a full config and load all of its weights."""
    model = build_model(cfg)
    SafeCheckpointer(model).load_all(weights)
    calibration = find_calibration(run_dir, model) if run_dir else None
    return TrainedDetector(cfg, model.eval(), weights, run_dir, iterations, calibration)


def load_for_evaluation(
    source: str, dataset: str | None, *, weights: str | None, **how: Any
) -> tuple[TrainedDetector, str]:
    """Load a detector and choose the data set to evaluate it on.

    Args:
        source: a run folder, or a config, which needs `dataset` and `weights`.
        dataset: a data set, or a pair of splits, of which the val split is taken; None takes the
            validation data of the run.
        weights: see :func:`load_detector`.
        how: "device" and "options" of :func:`load_detector`.

    Raises:
        BucketRankError: see :func:`load_detector` and :func:`load_config`; the data set is unknown.
    """
    split = members(dataset)[-1].name if dataset else None
    if Path(source).is_dir():
        detector = load_detector(source, weights=weights, **how)
        return detector, split or detector.cfg.DATASETS.TEST[0]
    try:
        path = find_config(source)
    except BucketRankError as error:
        raise BucketRankError(
            f"There is neither a run's folder nor a config called {source}; `bucketrank configs` "
            "lists the configs."
        ) from error
    if split is None or weights is None:
        raise BucketRankError(
            f"There is no run's folder {source}; to evaluate the config {path.name}, name a data "
            "set (--dataset) and weights (--weights)."
        )
    cfg = load_config(source, **how)
    set_num_classes(cfg, register(split).num_classes)
    return build_detector(cfg, weights), split


def default_output(detector: TrainedDetector, dataset: str) -> Path:
    """Default output folder of an evaluation."""
    parent = detector.run_dir or Path("runs")
    return parent / f"eval-{dataset}-{Path(detector.weights).stem}"


def register_of_run(record: dict[str, Any], dataset: str) -> DatasetInfo:
    """See :func:`register`; where its files are is known of the data sets of a run's run.json."""
    remembered = record.get("entries", {}).get(dataset)
    return register(dataset, DatasetEntry.from_dict(remembered) if remembered else None)


def evaluate(
    detector: TrainedDetector,
    dataset: str,
    output_dir: Path,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Evaluate a detector on a data set; write results.json and the detections to `output_dir`.

    On the validation data of its run the detector's calibration is fitted anew and stored in the
    run; on other data the one that it has is measured.

    Returns:
        The content of results.json: the results of :func:`evaluate_model`, what was evaluated, and
        "calibration"; see :func:`measure`.

    Raises:
        BucketRankError: the data set is unknown or invalid, has other classes than the detector,
            or has no masks for a detector of masks.
    """
    record = detector.record
    info = register_of_run(record, dataset)
    if record and list(info.class_names) != record["class_names"]:
        raise BucketRankError(
            f"The data set {dataset} has the classes {', '.join(info.class_names)}, but the "
            f"detector in {detector.run_dir} was trained on {', '.join(record['class_names'])}."
        )
    if detector.cfg.MODEL.MASK_ON:
        require_masks(info)
    output_dir.mkdir(parents=True, exist_ok=True)
    with run_logging(output_dir):
        matched: list[MatchedDetections] = []
        tasks = evaluate_model(
            detector.cfg, detector.model, dataset, output_dir, on_batch, matched.append
        )
        calibration = _calibrate(detector, dataset, tasks, *matched) if matched else {}
    results = {
        "dataset": dataset,
        "loss": detector.cfg.MODEL.RANKING.LOSS,
        "weights": detector.weights,
        "skipped": dict(info.skipped),
        **tasks,
        "calibration": calibration,
    }
    write_results(output_dir / RESULTS, results)
    return results


def _calibrate(
    detector: TrainedDetector, dataset: str, tasks: dict[str, Any], matched: MatchedDetections
) -> dict[str, float]:
    best_f1 = score_threshold(tasks)
    if detector.run_dir is not None and dataset in detector.cfg.DATASETS.TEST:
        return calibrate_run(detector.run_dir, detector.model, dataset, matched, best_f1)
    known = detector.calibration
    return measure(matched, best_f1, known.score_map(matched.scores) if known else None)


def best_threshold(
    detector: TrainedDetector, *, precision: float | None = None, raw_scores: bool = False
) -> float:
    """The score from which on detections are worth showing, in the units of :func:`detect`.

    Args:
        precision: see :meth:`Calibration.threshold`; None: that with the best F1. For weights that
            were not evaluated it is that of the run's last evaluation, or the default.

    Raises:
        BucketRankError: there is no such precision, or no calibration to know it by.
    """
    if detector.calibration is not None:
        threshold = detector.calibration.threshold(precision, raw=raw_scores)
        return DEFAULT_SCORE_THRESHOLD if math.isnan(threshold) else threshold
    if precision is not None:
        raise BucketRankError(
            f"Which score gives a precision of {precision:g} is not known of {detector.weights}: "
            "evaluate it on the validation data of its run (`bucketrank eval`) first."
        )
    if detector.run_dir is None:
        return DEFAULT_SCORE_THRESHOLD
    evaluated = [row for row in read_metrics(detector.run_dir) if has_ap(row)]
    # Detectron2 counts from 0, but gives the last evaluation the iteration after.
    last = detector.cfg.SOLVER.MAX_ITER
    own = [row for row in evaluated if min(row["iteration"] + 1, last) == detector.iterations]
    for row in (own or evaluated)[-1:]:
        for task in ("bbox", "segm"):  # Cityscapes has no boxes
            threshold = row.get(f"{task}/score_threshold")
            if threshold is not None and not math.isnan(threshold):
                return threshold
    return DEFAULT_SCORE_THRESHOLD


def detect(detector: TrainedDetector, image: np.ndarray, *, raw_scores: bool = False) -> Instances:
    """The detections in one image; see :func:`detect_batch`."""
    return detect_batch(detector, [image], raw_scores=raw_scores)[0]


@torch.no_grad()
def detect_batch(
    detector: TrainedDetector, images: Sequence[np.ndarray], *, raw_scores: bool = False
) -> list[Instances]:
    """The detections in images [H, W, 3] in the channel order of INPUT.FORMAT, on the CPU.

    Images of different sizes are padded to the largest, which may change scores a little.

    Scores are how likely a detection is right, float64, where the detector is calibrated, and those
    of its model where it is not, or with `raw_scores`.
    """
    sizes = detector.cfg.INPUT
    resize = T.ResizeShortestEdge(sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST)
    inputs = []
    for image in images:
        height, width = image.shape[:2]
        resized = resize.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        inputs.append({"image": tensor, "height": height, "width": width})
    found = [output["instances"].to("cpu") for output in detector.model(inputs)]
    if detector.calibration is not None and not raw_scores:
        for instances in found:
            probabilities = detector.calibration.score_map(instances.scores.float().numpy())
            instances.scores = torch.from_numpy(probabilities)
    return found
