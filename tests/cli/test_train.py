"""`bucketrank train`, `eval`, `report`, `predict` and `demo`, as a user types them."""

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.data import DatasetMapper
from PIL import Image
from safetensors import safe_open

from bucketed_ranking.data.registry import add_dataset
from bucketrank_cli.main import app
from tests.coco_blobs import write_blobs
from tests.small_detectors import NARROW

SHORT = [*NARROW, "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def cells(bucketrank_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a registered data set `cells` with splits, and of `cells_test`."""
    root = tmp_path_factory.mktemp("cells")
    for split, count in (("train", 10), ("val", 5), ("test", 4)):
        path = write_blobs(root / split, count, seed=count)
        add_dataset(f"cells_{split}", path, path.parent / "images")
    return root


@pytest.fixture(scope="module")
def run_dir(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--dataset", "cells", "--loss", "brs", "--seed", "3", "--output", folder]
    result = invoke("train", "retinanet_tiny", *arguments, *SHORT, "TEST.EVAL_PERIOD", "2")
    assert result.exit_code == 0, result.output
    assert "Training retinanet_tiny with brs on cells_train" in result.output
    assert "bbox AP (%) on cells_val" in result.output
    assert "Best AP: " in result.output
    return folder


def test_epochs_and_sizes_are_printed_as_keys_and_key_value_wins(cells, tmp_path):
    arguments = ["--dataset", "cells", "--device", "cpu", "--output", tmp_path / "run"]
    plain = ["--epochs", "1", "--batch-size", "5", "--image-size", "64", "--weights", "none"]
    # Of ten pictures; the pair at the end makes it three steps.
    options = [*NARROW, "SOLVER.IMS_PER_BATCH", "5", "SOLVER.MAX_ITER", "3"]
    result = invoke("train", "retinanet_tiny", *arguments, *plain, *options)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("As config keys")]
    for pair in (
        "SOLVER.MAX_ITER 2", "SOLVER.IMS_PER_BATCH 5", "INPUT.MIN_SIZE_TEST 64", "MODEL.WEIGHTS ''",
    ):  # fmt: skip
        assert pair in line
    assert json.loads((tmp_path / "run" / "results.json").read_text())["iterations"] == 3


def test_without_a_config_one_is_chosen_and_it_is_said_why(cells, tmp_path):
    # Its backbone is made small, and random, by keys at the end of the line.
    options = ["MODEL.TIMM.NAME", "test_efficientnet", "MODEL.WEIGHTS", "", *SHORT]
    arguments = ["--dataset", "cells", "--device", "cpu", "--output", tmp_path / "run"]
    result = invoke("train", *arguments, "--seed", "3", *options, "SOLVER.MAX_ITER", "1")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("Chose")]
    assert "mask_rcnn_lite0_FPN --image-size 96 --epochs 480" in line
    assert "every object has a mask" in line
    result = invoke("train", "SOLVER.MAX_ITER", "1")
    assert result.exit_code == 2
    assert "Name a config" in result.output


def test_weights_are_exported_and_train_and_evaluate_again(run_dir, tmp_path):
    path = tmp_path / "weights.safetensors"
    result = invoke("export", run_dir, "--weights", "last", "--out", path)
    assert result.exit_code == 0, result.output
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
    assert json.loads(metadata["class_names"]) == ["red", "green", "blue"]
    assert "LOSS: brs" in metadata["config"]
    assert names == set(torch.load(run_dir / "model_final.pth", weights_only=True)["model"])
    result = invoke("eval", run_dir, "--weights", path, "--output", tmp_path / "eval")
    assert result.exit_code == 0, result.output
    trained = json.loads((run_dir / "results.json").read_text())
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["bbox"] == trained["bbox"]
    before = path.read_bytes()
    assert invoke("export", run_dir, "--out", path).exit_code == 2
    assert path.read_bytes() == before
    assert invoke("export", run_dir, "--out", tmp_path / "x.bin").exit_code == 2


def test_an_exported_file_is_used_without_the_package(run_dir, cells, repository, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = tmp_path / "detector.onnx"
    result = invoke("export", run_dir, "--format", "onnx", "--out", path)
    assert result.exit_code == 0, result.output
    assert re.search(r"Checked: \d+ of \d+ detections in pictures of", result.output)
    photo = cells / "val" / "images" / "003.jpg"
    example = repository / "docs" / "onnx_example.py"
    imported = set(re.findall(r"^(?:import|from) (\w+)", example.read_text(), re.MULTILINE))
    assert imported == {"json", "sys", "numpy", "onnxruntime", "PIL"}
    command = [sys.executable, example, path, photo, tmp_path / "found.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert Image.open(tmp_path / "found.png").size == Image.open(photo).size
    lines = [line.split() for line in done.stdout.splitlines()]
    result = invoke("predict", run_dir, photo, "--out", tmp_path / "seen")
    assert result.exit_code == 0, result.output
    expected = json.loads((tmp_path / "seen" / "predictions.json").read_text())
    assert len(lines) == len(expected) > 0
    for (name, score, *corners), prediction in zip(lines, expected, strict=True):
        x, y, width, height = prediction["bbox"]
        assert name == prediction["category"]
        assert float(score) == pytest.approx(prediction["score"], abs=6e-4)
        given = [float(corner) for corner in corners]
        assert given == pytest.approx([x, y, x + width, y + height], abs=6e-3)


def test_what_cannot_be_exported_is_said(run_dir, tmp_path):
    for size in ("480", "480x", "0x640", "axb"):
        result = invoke("export", run_dir, "--format", "onnx", "--image-size", size)
        assert result.exit_code == 2
        assert "--image-size takes HEIGHTxWIDTH" in result.output
    result = invoke("export", run_dir, "--image-size", "64x64")
    assert result.exit_code == 2
    assert "--image-size goes with --format onnx or torchscript" in result.output
    result = invoke("export", run_dir, "--format", "onnx", "--out", tmp_path / "x.pt")
    assert result.exit_code == 2
    assert "must end in .onnx" in result.output


def test_losses_are_measured_when_asked_for(cells, run_dir, tmp_path):
    before = json.loads((run_dir / "results.json").read_text())
    assert before["images_per_ranking"] == 2
    names = ("loss_ms_per_iteration", "classification_loss_ms_per_iteration")
    assert [before[name] for name in names] == [None, None]
    arguments = ["--dataset", "cells", "--loss", "brs", "--seed", "3", "--output", tmp_path / "run"]
    result = invoke(
        "train", "retinanet_tiny", *arguments, "--profile", *SHORT, "SOLVER.MAX_ITER", "21"
    )
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    losses, classification = (results[name] for name in names)
    assert 0 < classification < losses < 1000 * 10
    assert json.loads((tmp_path / "run" / "run.json").read_text())["images_per_ranking"] == 2


def test_train_refuses_to_overwrite(run_dir):
    result = invoke("train", "retinanet_tiny", "--dataset", "cells", "--output", run_dir, *SHORT)
    assert result.exit_code == 2
    assert "is not empty; add --resume" in result.output
    assert "Training" not in result.output


def test_resume_says_when_nothing_is_left_to_do(run_dir):
    arguments = ["--dataset", "cells", "--loss", "brs", "--output", run_dir, "--resume", *SHORT]
    result = invoke("train", "retinanet_tiny", *arguments)
    assert result.exit_code == 0
    assert "nothing left to do" in result.output


def test_patience_ends_training_and_then_nothing_is_left_to_do(cells, tmp_path):
    arguments = ["train", "retinanet_tiny", "--dataset", "cells", "--output", tmp_path / "run",
                 "--patience", "1", "--workers", "0", *SHORT, "TEST.EVAL_PERIOD", "1",
                 "SOLVER.BASE_LR", "1e-12", "SOLVER.MAX_ITER", "20"]  # fmt: skip
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "As config keys: SOLVER.PATIENCE 1 DATALOADER.NUM_WORKERS 0" in result.output
    assert "Stopped early after" in result.output
    assert "nothing left to do" in invoke(*arguments, "--resume").output


def test_resume_trains_longer_when_asked(cells, tmp_path):
    arguments = ["train", "retinanet_tiny", "--dataset", "cells", "--loss", "bap",
                 "--output", tmp_path / "run", *SHORT]  # fmt: skip
    assert invoke(*arguments).exit_code == 0
    result = invoke(*arguments, "SOLVER.MAX_ITER", "6", "--resume")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["iterations"] == 6


def test_images_that_break_during_training_are_counted(cells, tmp_path, monkeypatch):
    read = DatasetMapper.__call__

    def fails_on_some(self, dataset_dict):
        if self.is_train and dataset_dict["file_name"].endswith(("002.jpg", "003.jpg")):
            raise OSError("truncated")
        return read(self, dataset_dict)

    monkeypatch.setattr(DatasetMapper, "__call__", fails_on_some)
    arguments = ["--dataset", "cells", "--output", tmp_path / "run", *SHORT]
    result = invoke("train", "retinanet_tiny", *arguments, "SOLVER.MAX_ITER", "10")
    assert result.exit_code == 0, result.output
    assert "2 training images could not be read" in result.output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [Path(name).name for name in record["unreadable_images"]] == ["002.jpg", "003.jpg"]


def test_the_default_folder_names_config_loss_and_data_set(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("train", "faster_rcnn_tiny", "--train", "cells_train", "--val", "cells_val",
                    *SHORT, "SOLVER.MAX_ITER", "1")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "faster_rcnn_tiny-brs-cells" / "results.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "no_such_config"], "did you mean"),
        (["train", "retinanet_tiny", "--loss", "no_such_loss"], "choose one of score"),
        (["train", "retinanet_tiny", "--dataset", "no_such_data"], "no_such_data"),
        (["train", "retinanet_tiny", "--num-gpus", "64"], "this machine has"),
        (["eval", "no_such_run"], "no_such_run"),
        (["report", "no_such_run"], "There is no run in no_such_run"),
        (["report", "retinanet_tiny"], "There is no run in retinanet_tiny"),
        (["eval", "retinanet_tiny"], "name a data set"),
        (["predict", "no_such_run", "x.jpg", "--out", "out"], "no_such_run"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence_and_exit_code_2(
    arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_eval_of_a_run_alone(run_dir):
    result = invoke("eval", run_dir)
    assert result.exit_code == 0, result.output
    trained = json.loads((run_dir / "results.json").read_text())
    best = trained["best"]
    assert f"model_best.pth (the best, after {best['iterations']} iterations)" in result.output
    written = json.loads((run_dir / "eval-cells_val-model_best" / "results.json").read_text())
    assert written["bbox"]["AP"] == best["bbox/AP"] >= trained["bbox"]["AP"]
    result = invoke("eval", run_dir, "--weights", "last")
    assert "model_final.pth (after 4 iterations)" in result.output
    last = json.loads((run_dir / "eval-cells_val-model_final" / "results.json").read_text())
    assert last["bbox"] == trained["bbox"]


def test_a_training_leaves_a_report_and_another_data_set_has_its_own(run_dir):
    before = (run_dir / "report.html").read_text()
    assert "model_final.pth (after 4 iterations)" in before
    result = invoke("report", run_dir, "--dataset", "cells_test")
    assert result.exit_code == 0, result.output
    path = run_dir / "eval-cells_test-model_best" / "report.html"
    assert f"Written to {path}" in result.output
    assert "the 4 pictures have 12 objects" in " ".join(path.read_text().split())
    assert (run_dir / "report.html").read_text() == before


def test_a_finished_training_is_not_evaluated_again_for_its_report(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("bucketed_ranking.engine.inference.evaluate", None)
    path = tmp_path / "new" / "page.html"
    result = invoke("report", run_dir, "--weights", "last", "--output", path)
    assert result.exit_code == 0, result.output
    assert "model_final.pth" in path.read_text()
    before = path.read_bytes()
    result = invoke("report", run_dir, "--weights", "last", "--output", path)
    assert result.exit_code == 2
    assert f"There is {path} already" in result.output
    assert path.read_bytes() == before


def test_a_training_that_was_stopped_is_evaluated_for_its_report(run_dir, tmp_path):
    stopped = tmp_path / "run"
    kept = ("config.yaml", "run.json", "model_0000001.pth")
    shutil.copytree(run_dir, stopped, ignore=lambda _, names: set(names) - set(kept))
    record = json.loads((stopped / "run.json").read_text()) | {"state": "interrupted"}
    (stopped / "run.json").write_text(json.dumps(record | {"iterations": 2}))
    result = invoke("report", stopped)
    assert result.exit_code == 0, result.output
    page = (stopped / "report.html").read_text()
    assert "2 of 4 iterations, was stopped" in page
    assert "model_0000001.pth (after 2 iterations)" in page
    assert "Nothing was logged" in page


def test_a_report_that_cannot_be_written_is_no_failed_training(cells, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("bucketed_ranking.engine.report.page.render", fail)
    arguments = ["--dataset", "cells", "--output", tmp_path / "run", *SHORT, "SOLVER.MAX_ITER", "1"]
    result = invoke("train", "retinanet_tiny", *arguments)
    assert result.exit_code == 0, result.output
    assert "The report could not be written (OSError: No space left on device)" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "run" / "report.html").exists()


def test_eval_of_a_run_whose_data_set_is_registered_no_more(run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("BUCKETRANK_HOME", str(tmp_path))
    result = invoke("eval", run_dir, "--weights", "last", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    trained = json.loads((run_dir / "results.json").read_text())
    assert json.loads((tmp_path / "out" / "results.json").read_text())["bbox"] == trained["bbox"]


def test_eval_shows_how_far_it_is(run_dir, tmp_path):
    """On a terminal, as a user runs it; large pictures take long enough to be seen one by one."""
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "bucketrank_cli", "eval", str(run_dir), "--output", str(tmp_path),
         "INPUT.MIN_SIZE_TEST", "640", "INPUT.MAX_SIZE_TEST", "1024"],
        stdin=its_end, stdout=its_end, stderr=its_end,
    )  # fmt: skip
    os.close(its_end)
    shown = b""
    with contextlib.suppress(OSError):  # so ends what a terminal without a process gives
        while piece := os.read(terminal, 65536):
            shown += piece
    os.close(terminal)
    assert process.wait() == 0, shown.decode()
    assert set(re.findall(rb"evaluating.* (\d+%)", shown)) & {b"20%", b"40%", b"60%", b"80%"}


def test_eval_on_another_data_set_and_of_a_config_with_weights(run_dir, tmp_path):
    arguments = ["--weights", "last", "--dataset", "cells_test", "--output", tmp_path / "a"]
    assert invoke("eval", run_dir, *arguments).exit_code == 0
    narrow = [*NARROW, "MODEL.RANKING.LOSS", "brs"]
    result = invoke(
        "eval", "retinanet_tiny", "--weights", run_dir / "model_final.pth",
        "--dataset", "cells_test", "--output", tmp_path / "b", *narrow,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    first, second = (
        json.loads((tmp_path / name / "results.json").read_text())["bbox"] for name in "ab"
    )
    assert first == second


def test_eval_on_other_classes_is_refused(run_dir):
    result = invoke("eval", run_dir, "--dataset", "shapes")
    assert result.exit_code == 2
    assert "was trained on red, green, blue" in " ".join(result.output.split())


def test_eval_of_another_detectors_weights_is_refused(run_dir, tmp_path):
    result = invoke(
        "eval", "faster_rcnn_tiny", "--weights", run_dir / "model_final.pth",
        "--dataset", "cells_test", "--output", tmp_path, *NARROW,
    )  # fmt: skip
    assert result.exit_code == 2
    assert "of another detector" in result.output


def test_predict_draws_and_writes_coco_results(run_dir, cells, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    folder = cells / "test" / "images"
    result = invoke(
        "predict", run_dir, folder, tmp_path / "broken.jpg", "--out", tmp_path / "out",
        "--score-threshold", "0",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Skipped" in result.output
    assert "broken.jpg" in result.output
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {p["category_id"] for p in predictions} <= {2, 5, 9}
    assert {p["category"] for p in predictions} <= {"red", "green", "blue"}
    assert {p["image_id"] for p in predictions} <= {1, 2, 3, 4}
    assert all(len(p["bbox"]) == 4 for p in predictions)


def test_masks_are_trained_measured_and_predicted(cells, tmp_path):
    run = tmp_path / "run"
    result = invoke("train", "mask_rcnn_tiny", "--dataset", "cells", "--output", run, *SHORT)
    assert result.exit_code == 0, result.output
    assert "segm AP (%) on cells_val" in result.output
    results = json.loads((run / "results.json").read_text())
    assert set(results["segm"]) == set(results["bbox"])
    assert "loss_mask" in results["final_losses"]
    picture = cells / "test" / "images" / "001.jpg"
    arguments = ["--out", tmp_path / "out", "--score-threshold", "0"]
    assert invoke("predict", run, picture, *arguments).exit_code == 0
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert predictions
    with Image.open(picture) as opened:
        size = [opened.height, opened.width]
    assert all(p["segmentation"]["size"] == size for p in predictions)


@pytest.mark.parametrize("counts", ["zzzz", [-100, 7780], [0.5, 7679.5]], ids=str)
def test_neither_garbage_nor_crowds_without_a_mask_stop_an_evaluation(cells, tmp_path, counts):
    content = json.loads((cells / "val" / "instances.json").read_text())
    content["annotations"][0]["segmentation"] = {"counts": counts, "size": [80, 96]}
    content["annotations"][1] |= {"iscrowd": 1, "segmentation": []}
    (tmp_path / "garbage.json").write_text(json.dumps(content))
    add_dataset("garbage", tmp_path / "garbage.json", cells / "val" / "images", force=True)
    result = invoke("train", "mask_rcnn_tiny", "--train", "cells_train", "--val", "garbage",
                    "--output", tmp_path / "run", *SHORT, "SOLVER.MAX_ITER", "1")  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["datasets"]["garbage"]["skipped"] == {"invalid mask": 1}


@pytest.mark.parametrize("source", ["retinanet_tiny", "no_such_run"])
def test_predict_with_what_is_no_run_is_told(source, run_dir, cells, tmp_path):
    picture, weights = cells / "test" / "images" / "001.jpg", run_dir / "model_final.pth"
    result = invoke("predict", source, picture, "--weights", weights, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"There is no run in {source}" in result.output


def test_predict_overwrites_no_picture(run_dir, cells, tmp_path):
    picture, other = cells / "test" / "images" / "001.jpg", tmp_path / "other" / "001.jpg"
    other.parent.mkdir()
    shutil.copy(picture, other)
    # What is named twice is looked at once.
    assert invoke("predict", run_dir, picture, other, picture, "--out", tmp_path).exit_code == 0
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["001-2.png", "001.png"]
    result = invoke("predict", run_dir, picture, "--out", tmp_path)
    assert result.exit_code == 2
    assert "choose another folder with --out" in result.output


def test_demo_trains_compares_and_draws(tmp_path):
    arguments = ["demo", "--output", tmp_path / "demo", *SHORT, "SOLVER.MAX_ITER", "2"]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "AP50" in result.output
    assert (tmp_path / "demo" / "detections.png").stat().st_size > 10_000
    results = tmp_path / "demo" / "retinanet_tiny-brs" / "results.json"
    before = results.stat().st_mtime_ns
    assert invoke(*arguments).exit_code == 0
    assert results.stat().st_mtime_ns == before, "a finished run is not run again"
