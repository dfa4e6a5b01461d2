"""Training, evaluation and prediction see the same pixels, and outlive pictures that vanish."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from typer.testing import CliRunner, Result

from bucketed_ranking.data.catalog import register
from bucketed_ranking.data.registry import add_dataset
from bucketed_ranking.engine import evaluation, prediction
from bucketed_ranking.engine.data_loader import build_train_loader
from bucketed_ranking.engine.mapper import EvaluationMapper, read_image
from bucketrank_cli.main import app
from tests.coco_blobs import write_blobs
from tests.small_detectors import NARROW, narrow_config

SHORT = [*NARROW, "SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "2"]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """The folder of the pictures of a registered data set, with 16 bits each."""
    path = write_blobs(tmp_path / "grey", 3, seed=1)
    content = json.loads(path.read_text())
    for record in content["images"]:
        file = path.parent / "images" / record["file_name"]
        values = np.asarray(Image.open(file).convert("L"), np.uint16)
        Image.fromarray(257 * values).save(file.with_suffix(".png"))
        record["file_name"] = file.with_suffix(".png").name
    path.write_text(json.dumps(content))
    add_dataset("grey", path, path.parent / "images", force=True)
    register("grey")
    return path.parent / "images"


def test_16_bits_are_the_same_8_everywhere(grey):
    cfg = narrow_config(
        "retinanet_tiny", "brs", "INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.RANDOM_FLIP", "none",
        "INPUT.MIN_SIZE_TEST", "0",
    )  # fmt: skip
    cfg.DATASETS.TRAIN, cfg.SEED = ("grey",), 1
    trained = {Path(d["file_name"]).name: d["image"] for d in next(iter(build_train_loader(cfg)))}
    evaluated = {
        Path(d["file_name"]).name: EvaluationMapper(cfg)(d)["image"]
        for d in DatasetCatalog.get("grey")
    }
    for name, image in trained.items():
        expected = np.asarray(Image.open(grey / name)) // 257
        assert 0 < expected.mean() < 255
        predicted = read_image(grey / name, format=cfg.INPUT.FORMAT)
        for pixels in (image.numpy(), evaluated[name].numpy(), predicted.transpose(2, 0, 1)):
            assert (pixels == expected).all()


@pytest.fixture(scope="module")
def pictures(bucketrank_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vanishing")
    for split, count in (("train", 4), ("val", 4)):
        path = write_blobs(root / split, count, seed=count)
        add_dataset(f"vanishing_{split}", path, path.parent / "images")
    return root


def test_a_validation_picture_that_is_deleted_during_training_is_left_out_and_counted(
    pictures, tmp_path, monkeypatch
):
    victim = pictures / "val" / "images" / "002.jpg"
    whole = victim.read_bytes()
    build = evaluation.build_detection_test_loader

    def delete_first(*arguments, **how):
        victim.unlink(missing_ok=True)
        return build(*arguments, **how)

    monkeypatch.setattr(evaluation, "build_detection_test_loader", delete_first)
    try:
        result = invoke("train", "retinanet_tiny", "--dataset", "vanishing", "--output",
                        tmp_path / "run", *SHORT)  # fmt: skip
        assert result.exit_code == 0, result.output
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert results["bbox"]["unreadable_images"] == 1
        assert "002.jpg" in (tmp_path / "run" / "log.txt").read_text()
        for picture in victim.parent.iterdir():
            picture.rename(picture.with_suffix(".gone"))
        result = invoke("eval", tmp_path / "run", "--output", tmp_path / "out")
    finally:
        for picture in victim.parent.glob("*.gone"):
            picture.rename(picture.with_suffix(".jpg"))
        victim.write_bytes(whole)
    assert result.exit_code == 2
    assert "has no usable images" in result.output or "cannot be read" in result.output
    assert "Traceback" not in result.output


def test_predictions_outlive_a_picture_that_is_too_large(pictures, tmp_path):
    run = tmp_path / "run"
    trained = invoke("train", "retinanet_tiny", "--dataset", "vanishing", "--output", run, *SHORT)
    assert trained.exit_code == 0, trained.output
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "1.jpg").write_bytes((pictures / "val" / "images" / "001.jpg").read_bytes())
    Image.new("1", (20_000, 20_000)).save(folder / "2.png")
    Image.fromarray(np.ones((30, 40), np.float32)).save(folder / "3.tif")
    result = invoke("predict", run, folder, "--out", tmp_path / "out", "--score-threshold", "0")
    assert result.exit_code == 0, result.output
    assert "2.png: Image size (400000000 pixels)" in result.output
    assert "3.tif: its pixels are floating-point numbers" in result.output
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {Path(p["file_name"]).name for p in predictions} == {"1.jpg"}


def test_predictions_are_kept_whatever_happens_then(pictures, tmp_path, monkeypatch):
    run = tmp_path / "run"
    trained = invoke("train", "retinanet_tiny", "--dataset", "vanishing", "--output", run, *SHORT)
    assert trained.exit_code == 0, trained.output
    detect, seen = prediction.detect_batch, []

    def interrupted(detector, images, **how):
        seen.extend(images)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return detect(detector, images, **how)

    monkeypatch.setattr(prediction, "detect_batch", interrupted)
    folder = pictures / "val" / "images"
    result = invoke("predict", run, folder, "--out", tmp_path / "out", "--score-threshold", "0")
    assert result.exit_code == 130
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {p["image_id"] for p in predictions} == {1, 2}
