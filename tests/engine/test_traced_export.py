"""ONNX and TorchScript files find what the detector finds, in pictures of any size."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from bucketed_ranking.engine import inference, traced_export
from bucketed_ranking.engine.calibration import ScoreMap
from bucketed_ranking.engine.export_check import agreement, matching_detections
from bucketed_ranking.engine.run_calibration import Calibration
from bucketed_ranking.engine.traced_export import export_traced
from bucketed_ranking.errors import BucketRankError
from tests.small_detectors import ALL_SCORES, narrow_config

CALIBRATION = Calibration("val", ScoreMap("isotonic", (0.0, 0.3, 1.0), (0.1, 0.5, 0.9)), 0.3, {})


def detector(name: str, loss: str = "brs") -> inference.TrainedDetector:
    """One whose random weights tell objects apart."""
    torch.manual_seed(0)
    options = ["INPUT.MAX_SIZE_TEST", "128", "TEST.DETECTIONS_PER_IMAGE", "20"]
    cfg = narrow_config(name, loss, *ALL_SCORES, *options)
    model = build_model(cfg).eval()
    for key, parameter in model.named_parameters():
        if parameter.ndim > 1 and any(w in key for w in ("cls_score", "bbox_pred", "predictor")):
            nn.init.normal_(parameter, std=0.05)
    return inference.TrainedDetector(cfg, model, "", None, calibration=CALIBRATION)


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    blobs = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8).repeat(16, axis=0).repeat(12, axis=1)
    flat = np.empty_like(blobs)
    flat[:] = 124, 116, 104  # what is subtracted: there is nothing to be seen
    return [blobs, blobs[:40], blobs.transpose(1, 0, 2)[:, :70], flat]


def found_by_onnxruntime(path, picture: np.ndarray) -> list[np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"picture": np.ascontiguousarray(picture)})


def found_by_torch(path, picture: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = torch.jit.load(path)(torch.from_numpy(np.ascontiguousarray(picture)))
    return [output.numpy() for output in outputs]


READERS = {"onnx": found_by_onnxruntime, "torchscript": found_by_torch}


def set_threshold(model: nn.Module, threshold: float) -> None:
    for module in model.modules():
        if hasattr(module, "test_score_thresh"):
            module.test_score_thresh = threshold


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("name", "loss", "format", "cut"),
    [
        ("retinanet_tiny", "brs", "onnx", False),
        ("retinanet_tiny", "brs", "torchscript", True),
        ("paa_tiny", "score", "onnx", True),
        ("faster_rcnn_tiny", "score", "onnx", True),
        ("cascade_mask_rcnn_tiny", "brs", "onnx", True),
        ("mask_rcnn_tiny", "brs", "torchscript", False),
    ],
)
def test_a_file_finds_what_prediction_finds(name, loss, format, cut, tmp_path):
    """`cut`: by a threshold that leaves nothing in the flat picture."""
    if format == "onnx":
        pytest.importorskip("onnx", reason="onnx is not installed")
    small = detector(name, loss)
    given = pictures()
    flip = [p[:, :, ::-1] for p in given]
    if cut:
        nothing = inference.detect(small, flip[-1], raw_scores=True)
        set_threshold(small.model, 1e-3 + nothing.scores.max().item())
    path = tmp_path / f"x.{format}"
    export_traced(small, path, format)
    counts = []
    for picture, flipped in zip(given, flip, strict=True):
        found = READERS[format](path, picture)
        instances = inference.detect(small, flipped)
        boxes, scores, classes = found[:3]
        assert (boxes.dtype, scores.dtype, classes.dtype) == (np.float32, np.float64, np.int64)
        assert (np.diff(scores) <= 0).all()
        expected = [instances.pred_boxes.tensor, instances.scores, instances.pred_classes]
        if "mask" in name:
            assert found[3].shape == (len(boxes), *picture.shape[:2])
            assert found[3].dtype == bool
            expected.append(instances.pred_masks)
        pairs = matching_detections(found, [e.numpy() for e in expected], box_tolerance=1e-3)
        counts.append(len(instances))
        assert len(boxes) == len(instances)
        assert len(pairs) >= 0.95 * len(instances)
    assert (counts[-1] == 0) == cut
    assert sum(counts) >= (4 if cut else 70)


def test_a_file_of_one_size_does_not_resize_and_says_so(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    small = detector("atss_tiny")
    path = tmp_path / "x.onnx"
    checked = export_traced(small, path, "onnx", (72, 90))
    assert checked.sizes == [(72, 90)] * 3
    assert checked.same == checked.detections > 20
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["image_size"]) == [72, 90]
    assert metadata["resized_to_shortest_and_longest"] == "null"
    assert metadata["calibrated"] == "true"
    assert 0.9998 < float(metadata["score_threshold"]) / CALIBRATION.threshold() < 1
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [dimension.dim_value for dimension in dimensions] == [72, 90, 3]
    cfg = small.cfg.clone()
    cfg.INPUT.MIN_SIZE_TEST = 0
    picture = pictures()[0][:72, :90]
    instances = inference.detect(dataclasses.replace(small, cfg=cfg), picture[:, :, ::-1])
    boxes, scores, _ = found_by_onnxruntime(path, picture)
    np.testing.assert_allclose(scores, instances.scores, atol=1e-4)
    assert boxes[:, 2].max() <= 90


def test_a_file_that_finds_something_else_is_refused():
    small = detector("retinanet_tiny")
    picture = pictures()[0]
    instances = inference.detect(small, picture[:, :, ::-1])
    right = [instances.pred_boxes.tensor, instances.scores, instances.pred_classes]
    right = [field.numpy() for field in right]
    checked = agreement(small, lambda _: right, [picture])
    assert checked.same == checked.detections == len(instances) == 20
    assert checked.describe().startswith("20 of 20 detections in pictures of 112 x 108 are")
    boxes, scores, classes = right
    for wrong in (
        [boxes + 0.01, scores, classes],
        [boxes, scores + 0.001, classes],
        [boxes, scores, classes + 1],
        [each[:10] for each in right],
        [np.concatenate([each, each]) for each in right],
    ):
        with pytest.raises(BucketRankError, match="The exported file is no good"):
            agreement(small, lambda _, wrong=wrong: wrong, [picture])

    def fails(_) -> None:
        raise RuntimeError("Reshape: 1102 is not 986")

    with pytest.raises(BucketRankError, match=r"it fails \(Reshape.*nothing was written\.$"):
        agreement(small, fails, [picture])
    with pytest.raises(BucketRankError, match=r"written; some detectors.*--image-size HxW\.$"):
        agreement(small, fails, [picture, picture[:50]])


def test_what_is_missing_is_said_and_no_file_is_written_over(tmp_path, monkeypatch):
    small = detector("retinanet_tiny")
    path = tmp_path / "x.onnx"
    with pytest.raises(BucketRankError, match=r"must end in \.torchscript"):
        export_traced(small, path, "torchscript")
    path.write_text("mine")
    with pytest.raises(BucketRankError, match="There is a file"):
        export_traced(small, path, "onnx")
    assert path.read_text() == "mine"
    cfg = narrow_config("co_deformable_detr_tiny", "brs")
    with pytest.raises(BucketRankError, match="Co-DETR cannot be exported"):
        export_traced(
            dataclasses.replace(small, cfg=cfg), tmp_path / "y.torchscript", "torchscript"
        )
    monkeypatch.setattr(traced_export, "find_spec", lambda name: None)
    with pytest.raises(BucketRankError, match="needs onnx, which is not installed"):
        export_traced(small, tmp_path / "y.onnx", "onnx")
    assert traced_export._onnx_runner(b"") is None

    def untraceable(inputs):
        raise RuntimeError("no such operator\nand a long story")

    small.model.forward = untraceable
    monkeypatch.setattr(traced_export, "check_pictures", lambda *_: pictures())
    expected = "RankingRetinaNet cannot be exported as torchscript: no such operator$"
    with pytest.raises(BucketRankError, match=expected):
        export_traced(small, tmp_path / "y.torchscript", "torchscript")
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]
