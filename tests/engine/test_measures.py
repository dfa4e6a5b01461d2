"""The numbers of an evaluation are those of pycocotools on COCO and of lvis on LVIS."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bucketed_ranking.engine.evaluation import DetectionEvaluator

SIDE = 112  # objects of more than 96 squared pixels, large ones, fit
TASKS = ("bbox", "segm")


def ellipses(boxes: np.ndarray) -> np.ndarray:
    """Masks [N, SIDE, SIDE] of the ellipses in boxes [N, 4] (x, y, width, height)."""
    x, y, width, height = boxes.T[..., None, None]
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    across, down = (columns - x) / width - 0.5, (rows - y) / height - 0.5
    return across**2 + down**2 <= 0.25


def detections(boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray) -> Instances:
    instances = Instances((SIDE, SIDE))
    instances.pred_masks = torch.from_numpy(ellipses(boxes))
    instances.pred_boxes = Boxes(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
    instances.pred_classes = torch.from_numpy(classes)
    instances.scores = torch.from_numpy(scores)
    return instances


def random_case(seed: int, num_classes: int) -> tuple[dict, list[Instances]]:
    """Ground truth in COCO's and LVIS' format, and detections of its images 1 to 9.

    Scores have one decimal, so that many are equal. Some images have no object, one has no
    detection, one has 400; with several classes, one has no object.
    """
    rng = np.random.default_rng(seed)
    images, annotations, found = [], [], []
    for image_id in range(1, 10):
        sizes = rng.uniform(8, 104, (0 if image_id % 4 == 0 else rng.integers(1, 7), 2))
        truth = np.concatenate([rng.uniform(0, SIDE - sizes), sizes], axis=1)
        categories = rng.integers(1, max(num_classes, 2), len(truth))
        for box, category, mask in zip(truth, categories, ellipses(truth), strict=True):
            runs = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotation = {
                "id": len(annotations) + 1, "image_id": image_id, "category_id": int(category),
                "bbox": box.tolist(), "area": float(mask_util.area(runs)),
                "segmentation": {**runs, "counts": runs["counts"].decode()},
                "iscrowd": int(rng.random() < 0.2),
            }  # fmt: skip
            annotations.append(annotation)
        repeats = rng.integers(0, 5, len(truth)) if image_id != 7 else np.zeros(len(truth), int)
        boxes = truth.repeat(repeats, axis=0)
        boxes += rng.normal(0, 0.07, boxes.shape) * boxes[:, [2, 3, 2, 3]]
        classes = categories.repeat(repeats) - 1
        if image_id == 9:
            more = np.concatenate([rng.uniform(0, 80, (400, 2)), rng.uniform(5, 30, (400, 2))], 1)
            boxes, classes = np.concatenate([boxes, more]), np.append(classes, [0] * 400)
        changed = rng.random(len(classes)) < 0.3
        classes = np.where(changed, rng.integers(0, num_classes, len(classes)), classes)
        found.append(detections(boxes, classes, rng.random(len(classes)).round(1)))
        asked, open_ended = rng.random((2, num_classes)) < [[0.5], [0.3]]
        images.append(
            {
                "id": image_id, "width": SIDE, "height": SIDE, "file_name": f"{image_id}.jpg",
                "neg_category_ids": (np.flatnonzero(asked) + 1).tolist(),
                "not_exhaustive_category_ids": (np.flatnonzero(open_ended) + 1).tolist(),
            }
        )  # fmt: skip
    categories = [
        {"id": number, "name": f"class {number}", "frequency": "rcf"[number % 3]}
        for number in range(1, num_classes + 1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}, found


class Kept(DetectionEvaluator):
    """Keeps what faster-coco-eval found, by task."""

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        self.found = {**getattr(self, "found", {}), iou_type: coco_eval}
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


@pytest.fixture
def evaluate(tmp_path):
    """Evaluates a case by the measure of "coco" or "lvis"; returns evaluator and results."""
    name = "random_detections"

    def evaluate(kind: str, truth: dict, found: list[Instances]):
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(truth))
        names = [category["name"] for category in truth["categories"]]
        MetadataCatalog.get(name).set(json_file=str(path), evaluator_type=kind, thing_classes=names)
        evaluator = Kept(name, tasks=TASKS, output_dir=str(tmp_path))
        evaluator.reset()
        for image, instances in zip(truth["images"], found, strict=True):
            evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
        return evaluator, evaluator.evaluate()

    yield evaluate
    MetadataCatalog.pop(name, None)


def written(folder: Path, kind: str, task: str) -> list[dict]:
    """What the evaluation wrote; for masks without the boxes, of which the area would be taken."""
    results = json.loads((folder / f"{kind}_instances_results.json").read_text())
    left_out = "bbox" if task == "segm" else "segmentation"
    return [{k: v for k, v in result.items() if k != left_out} for result in results]


def assert_per_class(results: dict[str, float], precision: np.ndarray) -> None:
    """Compares with precision by IoU thresholds x recall levels x classes; -1 where unknown."""
    for number, of_class in enumerate(np.moveaxis(precision, 2, 0), start=1):
        expected = 100 * of_class.mean() if of_class.min() > -1 else np.nan
        assert results[f"AP-class {number}"] == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("num_classes", [1, 2, 5])
@pytest.mark.parametrize("seed", range(8))
def test_numbers_are_those_of_pycocotools(evaluate, tmp_path, seed, num_classes):
    evaluator, results = evaluate("coco", *random_case(seed, num_classes))
    for task in TASKS:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(tmp_path / "truth.json"))
            official = COCOeval(truth, truth.loadRes(written(tmp_path, "coco", task)), task)
            official.evaluate()
            official.accumulate()
            official.summarize()
        assert len(official.stats) == 12
        np.testing.assert_allclose(evaluator.found[task].stats, official.stats, atol=1e-9, rtol=0)
        for key in ("precision", "recall", "scores"):
            ours, theirs = evaluator.found[task].eval[key], official.eval[key]
            np.testing.assert_allclose(ours, theirs, atol=1e-9, rtol=0)
        expected = [100 * value if value > -1 else np.nan for value in official.stats[:6]]
        found = [results[task][name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
        np.testing.assert_allclose(found, expected, atol=1e-9, rtol=0)
        assert_per_class(results[task], official.eval["precision"][..., 0, -1])


@pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning")
@pytest.mark.parametrize("seed", range(8))
def test_numbers_are_those_of_lvis(evaluate, tmp_path, seed, monkeypatch):
    lvis = pytest.importorskip("lvis.eval")
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 is older than NumPy 1.24
    _, results = evaluate("lvis", *lvis_case(seed))
    for task in TASKS:
        truth = lvis.LVIS(str(tmp_path / "truth.json"))
        found = lvis.LVISResults(truth, written(tmp_path, "lvis", task), max_dets=300)
        official = lvis.LVISEval(truth, found, task)
        official.run()
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"):
            value = official.results[name]
            expected = 100 * value if value > -1 else np.nan
            assert results[task][name] == pytest.approx(expected, abs=1e-9, nan_ok=True), name
        assert_per_class(results[task], official.eval["precision"][..., 0])


def lvis_case(seed: int) -> tuple[dict, list[Instances]]:
    truth, found = random_case(seed, 5)
    for annotation in truth["annotations"]:
        del annotation["iscrowd"]
    return truth, found


# What lvis 0.5.3 gave for seed 0; it may not be installed.
LVIS_NUMBERS = {
    "bbox": {
        "AP": 33.72339940037959, "AP50": 59.72100781506722, "AP75": 38.94458676636895,
        "APs": 53.53754125412542, "APm": 30.738898889888986, "APl": np.nan,
        "APr": 45.246611474334244, "APc": 30.558405840584058, "APf": 28.530174446016034,
    },
    "segm": {
        "AP": 33.09174159174159, "AP50": 57.695805294815194, "AP75": 28.01547462438552,
        "APs": 52.813531353135325, "APm": 30.418590073293046, "APl": np.nan,
        "APr": 48.76028427018525, "APc": 28.264326432643266, "APf": 27.078029231494575,
    },
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_numbers_are_those_that_lvis_gave(evaluate, task):
    _, results = evaluate("lvis", *lvis_case(0))
    found = {name: results[task][name] for name in LVIS_NUMBERS[task]}
    assert found == pytest.approx(LVIS_NUMBERS[task], abs=1e-9, nan_ok=True)
