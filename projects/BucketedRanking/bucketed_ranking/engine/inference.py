"""Load a trained detector, evaluate it on data sets, detect objects in pictures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.structures import BoxMode, Instances
from PIL import Image
from torch import nn

from ..data.catalog import register, require_masks
from ..data.draw import LabelledBox, draw_boxes, draw_masks
from ..data.registry import DatasetEntry, members
from ..environment import choose_device
from ..errors import BucketRankError
from ..zoo import find_config
from .calibration import MatchedDetections
from .checkpoint import BEST, SafeCheckpointer, chosen_checkpoint
from .evaluation import evaluate_model, score_threshold, write_results
from .mapper import UNREADABLE, read_image
from .picture_files import free_name
from .run_calibration import Calibration, calibrate_run, find_calibration, measure
from .run_folder import RECORD, RESULTS, has_ap, is_run, read_config, read_json, read_metrics
from .run_logging import run_logging
from .setup import check_values, load_config, merge_options, set_num_classes

# Pictures are drawn at this score where no evaluation has found a better one.
DEFAULT_SCORE_THRESHOLD = 0.3
PREDICTIONS = "predictions.json"


@dataclass(frozen=True)
class Detector:
    """A model in evaluation mode, its config, its weights and its run folder, if it has one."""

    cfg: CfgNode
    model: nn.Module
    weights: str
    run_dir: Path | None
    iterations: int | None = None
    """After how many of its run the weights were saved; None: not known."""
    calibration: Calibration | None = None
    """Of its weights' scores; None: they were not evaluated on the validation data of a run."""

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
) -> Detector:
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
) -> Detector:
    """Build the model of a full config and load all of its weights."""
    model = build_model(cfg)
    SafeCheckpointer(model).load_all(weights)
    calibration = find_calibration(run_dir, model) if run_dir else None
    return Detector(cfg, model.eval(), weights, run_dir, iterations, calibration)


def load_for_evaluation(
    source: str, dataset: str | None, *, weights: str | None, **how: Any
) -> tuple[Detector, str]:
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


def default_output(detector: Detector, dataset: str) -> Path:
    """Default output folder of an evaluation."""
    parent = detector.run_dir or Path("runs")
    return parent / f"eval-{dataset}-{Path(detector.weights).stem}"


def evaluate(
    detector: Detector,
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
    record = read_json(detector.run_dir / RECORD) if detector.run_dir else {}
    remembered = record.get("entries", {}).get(dataset)
    info = register(dataset, DatasetEntry.from_dict(remembered) if remembered else None)
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
    detector: Detector, dataset: str, tasks: dict[str, Any], matched: MatchedDetections
) -> dict[str, float]:
    best_f1 = score_threshold(tasks)
    if detector.run_dir is not None and dataset in detector.cfg.DATASETS.TEST:
        return calibrate_run(detector.run_dir, detector.model, dataset, matched, best_f1)
    known = detector.calibration
    return measure(matched, best_f1, known.score_map(matched.scores) if known else None)


def best_threshold(
    detector: Detector, *, precision: float | None = None, raw_scores: bool = False
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


def predict(
    detector: Detector,
    images: Sequence[Path],
    output_dir: Path,
    *,
    score_threshold: float,
    raw_scores: bool = False,
    on_image: Callable[[Path, int], None] = lambda path, count: None,
) -> dict[str, Any]:
    """Detect objects in picture files, draw them, and write them in COCO's results format.

    Args:
        detector: loaded from a run folder, which has the names of its classes.
        output_dir: for a PNG of each picture and predictions.json, a list of image_id (from 1, in
            the order of `images`), file_name, category_id, category, bbox (x, y, w, h in pixels),
            score.
        raw_scores: see :func:`detect`; `score_threshold` is in the same units.
        on_image: called with each file and the number of objects found in it.

    Returns:
        "predictions": the list; "unreadable": the files that could not be read, and why.

    Raises:
        BucketRankError: `output_dir` has predictions already.
    """
    if (output_dir / PREDICTIONS).exists():
        raise BucketRankError(
            f"There are predictions in {output_dir} already; choose another folder with --out."
        )
    assert detector.run_dir is not None
    record = read_json(detector.run_dir / RECORD)
    class_names, category_ids = record["class_names"], record["category_ids"]
    output_dir.mkdir(parents=True, exist_ok=True)
    predictions: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    try:
        for image_id, path in enumerate(images, start=1):
            try:
                image = read_image(str(path), format=detector.cfg.INPUT.FORMAT)
            except UNREADABLE as error:
                unreadable[str(path)] = str(error)
                continue
            instances = detect(detector, image, raw_scores=raw_scores)
            instances = instances[instances.scores >= score_threshold]
            boxes = labelled_boxes(instances, class_names)
            picture = Image.fromarray(convert_image_to_rgb(image, detector.cfg.INPUT.FORMAT))
            if instances.has("pred_masks"):
                masks, classes = instances.pred_masks.numpy(), instances.pred_classes.tolist()
                picture = draw_masks(picture, masks, classes, len(class_names))
            draw_boxes(picture, boxes, len(class_names)).save(free_name(output_dir, path.stem))
            for result in instances_to_coco_json(instances, image_id):
                index = result["category_id"]
                result |= {"category_id": category_ids[index], "category": class_names[index]}
                predictions.append({**result, "file_name": str(path)})
            on_image(path, len(instances))
    finally:  # what is found is kept, whatever the next picture does
        write_results(output_dir / PREDICTIONS, predictions)
    return {"predictions": predictions, "unreadable": unreadable}


@torch.no_grad()
def detect(detector: Detector, image: np.ndarray, *, raw_scores: bool = False) -> Instances:
    """The detections in an image [H, W, 3] in the channel order of INPUT.FORMAT, on the CPU.

    Scores are how likely a detection is right, float64, where the detector is calibrated, and those
    of its model where it is not, or with `raw_scores`.
    """
    height, width = image.shape[:2]
    sizes = detector.cfg.INPUT
    resize = T.ResizeShortestEdge(sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST)
    resized = resize.get_transform(image).apply_image(image)
    tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    inputs = {"image": tensor, "height": height, "width": width}
    instances = detector.model([inputs])[0]["instances"].to("cpu")
    if detector.calibration is not None and not raw_scores:
        probabilities = detector.calibration.score_map(instances.scores.float().numpy())
        instances.scores = torch.from_numpy(probabilities)
    return instances


def labelled_boxes(instances: Instances, class_names: Sequence[str]) -> list[LabelledBox]:
    """Detections (or ground truth, without scores) as boxes to draw."""
    classes = instances.pred_classes.tolist()
    texts = [class_names[index] for index in classes]
    if instances.has("scores"):
        texts = [f"{t} {s:.2f}" for t, s in zip(texts, instances.scores, strict=True)]
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    return [LabelledBox(*b, c, t) for b, c, t in zip(boxes.tolist(), classes, texts, strict=True)]
