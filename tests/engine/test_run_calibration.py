"""The calibration of a run: which detections count, that AP stays, and that weights find it."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from bucketed_ranking.data.catalog import register
from bucketed_ranking.data.registry import add_dataset, find_dataset
from bucketed_ranking.engine import calibration, inference
from bucketed_ranking.engine.calibration import MatchedDetections, ScoreMap
from bucketed_ranking.engine.evaluation import evaluate_model
from bucketed_ranking.engine.run_calibration import (
    Calibration,
    calibrate_run,
    find_calibration,
    fingerprint,
    measure,
)
from bucketed_ranking.errors import BucketRankError
from tests.small_detectors import narrow_config
from tests.stored_run import Listed

HALF = ScoreMap("logistic", (0.0, 0.1), (0.0, 1.0))


def noisy(count=400, seed=0):
    rng = np.random.default_rng(seed)
    scores = (0.1 * rng.random(count)).astype(np.float32).astype(float)
    return MatchedDetections(np.arange(count) // 4, scores, rng.random(count) < 10 * scores)


@pytest.fixture
def one_picture(blobs, tmp_path):
    """The first picture of the blobs with two objects of class 0 and a crowd, and its id."""
    entry = find_dataset(f"{blobs}_val")
    content = json.loads(entry.json.read_text())
    image, category = content["images"][0], content["categories"][0]["id"]
    boxes = [[0, 0, 10, 10], [20, 0, 10, 10], [0, 20, 20, 20]]
    content |= {"images": [image], "annotations": [
        {"id": i + 1, "image_id": image["id"], "category_id": category, "bbox": box,
         "area": box[2] * box[3], "iscrowd": int(i == 2)}
        for i, box in enumerate(boxes)
    ]}  # fmt: skip
    (tmp_path / "one.json").write_text(json.dumps(content))
    add_dataset("one_picture", tmp_path / "one.json", entry.images, force=True)
    return register("one_picture").name, image["id"]


def matched_of(model, dataset, folder):
    kept = []
    evaluate_model(
        narrow_config("retinanet_tiny", "brs"), model, dataset, folder, on_matched=kept.append
    )
    return kept[0]


def test_a_detection_is_right_by_greedy_matching_at_half_iou(one_picture, tmp_path):
    dataset, image = one_picture
    model = Listed({image: [
        [0, 0, 10, 6, 0.9, 0],     # IoU 0.6: right, though
        [0, 0, 10, 9.5, 0.8, 0],   # a duplicate, however well it fits
        [20, 0, 10, 4, 0.7, 0],    # IoU 0.4
        [2, 22, 10, 10, 0.6, 0],   # in the crowd: does not count
        [20, 0, 10, 10, 0.5, 1],   # the wrong class
        [20, 0, 10, 10, 0.4, 0],
    ]})  # fmt: skip
    matched = matched_of(model, dataset, tmp_path)
    order = np.argsort(-matched.scores)
    assert matched.scores[order] == pytest.approx([0.9, 0.8, 0.7, 0.5, 0.4])
    assert matched.right[order].tolist() == [True, False, False, False, True]
    assert set(matched.pictures) == {image}


def test_nothing_found_is_nothing_matched(one_picture, tmp_path):
    matched = matched_of(Listed({}), one_picture[0], tmp_path)
    assert [len(each) for each in matched] == [0, 0, 0]


def test_no_ap_changes_by_calibration(blobs, tmp_path):
    """Also where scores tie, or are neighbours in float32 and lie where the map is flat."""
    dataset, rng = register(f"{blobs}_val").name, np.random.default_rng(0)
    content = json.loads(find_dataset(dataset).json.read_text())
    ids = [c["id"] for c in content["categories"]]
    detections = {}
    for each in content["annotations"]:
        shift = rng.choice([0, 0, 1, 4], size=2)
        x, y, *size = each["bbox"]
        score = np.float32(0.05).view(np.int32) + np.int32(rng.integers(0, 12))
        row = [
            x + shift[0],
            y + shift[1],
            *size,
            score.view(np.float32),
            ids.index(each["category_id"]),
        ]
        detections.setdefault(each["image_id"], []).extend([row, row] if shift[0] == 1 else [row])
    cfg = narrow_config("retinanet_tiny", "brs")
    raw = evaluate_model(cfg, Listed(detections), dataset, tmp_path)["bbox"]
    assert 0 < raw["AP"] < 100
    for score_map in (HALF, ScoreMap("", (0.2, 0.8), (0.9, 0.9))):
        model = Listed(detections, score_map)
        calibrated = evaluate_model(cfg, model, dataset, tmp_path)["bbox"]
        thresholds = raw.pop("score_threshold"), calibrated.pop("score_threshold")
        assert thresholds[1] == score_map(np.array(thresholds[0]))
        assert repr(calibrated) == repr(raw)
        raw["score_threshold"] = thresholds[0]


def test_a_calibration_is_found_by_its_weights_alone(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert find_calibration(tmp_path, model) is None
    calibrate_run(tmp_path, model, "blobs_val", noisy(), 0.05)
    other.load_state_dict(model.state_dict())
    found = find_calibration(tmp_path, other)
    assert found.dataset == "blobs_val"
    assert found.threshold(raw=True) == 0.05
    assert found.threshold() == pytest.approx(0.5, abs=0.1)
    with torch.no_grad():
        other.bias[0] += 1e-6
    assert find_calibration(tmp_path, other) is None
    (tmp_path / "calibration" / f"{fingerprint(model)}.json").write_text("{}")
    with pytest.raises(BucketRankError, match="is damaged"):
        find_calibration(tmp_path, model)


def test_thresholds_select_the_same_detections_in_both_units(tmp_path):
    matched = noisy()
    calibrate_run(tmp_path, nn.Linear(1, 1), "val", matched, math.nan)
    stored = Calibration.read(next((tmp_path / "calibration").iterdir()))
    assert math.isnan(stored.threshold())
    likely = stored.score_map(matched.scores)
    raw = matched.scores >= stored.threshold(0.8, raw=True)
    assert (raw == (likely >= stored.threshold(0.8))).all()
    assert matched.right[raw].mean() >= 0.8
    with pytest.raises(BucketRankError, match="No score threshold gives a precision of 99 %"):
        Calibration("val", HALF, 0.5, {50: 0.1, 90: 0.2}).threshold(0.985)


def test_what_cannot_be_fitted_leaves_nothing(tmp_path):
    nothing_right = noisy()._replace(right=np.zeros(400, dtype=bool))
    measured = calibrate_run(tmp_path, nn.Linear(1, 1), "val", nothing_right, math.nan)
    assert not list(tmp_path.iterdir())
    assert measured["error"] == pytest.approx(nothing_right.scores.mean())
    assert math.isnan(measured["kept_error"])
    assert set(measured) == {"error", "kept_error"}


def test_calibration_lowers_the_error_of_the_kept_ones_too():
    matched = noisy()
    measured = measure(matched, 0.05, HALF(matched.scores))
    assert measured["error_calibrated"] < 0.1 < measured["error"]
    assert measured["kept_error_calibrated"] < 0.2 < measured["kept_error"]


def test_thresholds_of_a_detector_are_in_the_units_of_its_scores():
    given = Calibration("val", HALF, 0.05, {95: 0.08})
    detector = inference.TrainedDetector(None, None, "w.pth", None, None, given)
    assert inference.best_threshold(detector) == pytest.approx(0.5, abs=1e-4)
    assert inference.best_threshold(detector, raw_scores=True) == 0.05
    assert inference.best_threshold(detector, precision=0.95) == pytest.approx(0.8, abs=1e-4)
    uncalibrated = inference.TrainedDetector(None, None, "w.pth", None)
    with pytest.raises(BucketRankError, match=r"not known of w\.pth"):
        inference.best_threshold(uncalibrated, precision=0.95)


@pytest.mark.parametrize("own", [True, False])
def test_only_the_validation_data_of_its_run_calibrate_a_detector(
    blobs, tmp_path, monkeypatch, own
):
    monkeypatch.setattr(calibration, "_LEAST", 1)  # there are few pictures
    info = register(f"{blobs}_val")
    content = json.loads(info.json.read_text())
    boxes = {each["image_id"]: each["bbox"] for each in content["annotations"]}
    model = Listed(
        {image: [[0, 0, 2, 2, 0.01 * i, c] for i in range(6) for c in range(info.num_classes)]
         + [[*box, 0.08, c] for c in range(info.num_classes)] for image, box in boxes.items()}
    )  # fmt: skip
    cfg = narrow_config("retinanet_tiny", "brs")
    cfg.DATASETS.TEST = (info.name,) if own else ("another",)
    record = {"class_names": list(info.class_names), "entries": {}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    known = Calibration("val", HALF, 0.05, {})
    detector = inference.TrainedDetector(
        cfg, model, "w.pth", tmp_path, None, None if own else known
    )
    measured = inference.evaluate(detector, info.name, tmp_path / "out")["calibration"]
    assert (tmp_path / "calibration").exists() == own
    assert set(measured) == {
        "error", "error_calibrated", "kept_error", "kept_error_calibrated",
    }  # fmt: skip
