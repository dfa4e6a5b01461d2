"""`bucketrank replay`, and the options of `bucketrank train` about its steps."""

import json
import math
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from bucketed_ranking.engine.data_loader import TrainingLoader
from bucketrank_cli.main import app
from tests.small_detectors import NARROW


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(output: Path, blobs: str, loss: str, *options: str) -> Result:
    """Three iterations on the small data set; the images of the second are not finite."""
    images = TrainingLoader.__iter__

    def spoilt(self):
        for iteration, batch in enumerate(images(self)):
            if iteration == 1:
                batch[0]["image"] = batch[0]["image"] * torch.nan
            yield batch

    arguments = ["--dataset", blobs, "--loss", loss, "--seed", "3", "--output", output, *options]
    with mock.patch.object(TrainingLoader, "__iter__", spoilt):
        return invoke("train", "faster_rcnn_tiny", *arguments, *NARROW, "SOLVER.MAX_ITER", "3")


@pytest.mark.parametrize("loss", ["rs-exact", "score"])
def test_a_step_that_is_not_finite_is_told_kept_and_shown(blobs, tmp_path, loss):
    result = train(tmp_path / "run", blobs, loss)
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    path = tmp_path / "run" / "nan" / "iteration_0000001.pth"
    assert "Training diverged at iteration 1: The loss is not finite: loss" in said
    assert f"`bucketrank replay {path}` runs it again." in said
    assert "Traceback" not in said
    # Detectron2's own losses raise in the middle of a step: here the GIoU loss of its RPN.
    assert ("(bad box: x1 larger than x2)" in said) == (loss == "score")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "diverged"

    result = invoke("replay", path, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Iteration 1, images ")
    assert "nan (in training: nan)" in result.output
    assert "output that is not finite: backbone.bottom_up.stem.conv1" in result.output
    assert "Gradients that are not finite: " in result.output


def test_skipping_goes_on_and_counts(blobs, tmp_path):
    options = "--on-nan", "skip", "--amp", "--accumulate", "2"
    result = train(tmp_path / "run", blobs, "brs", *options)
    assert result.exit_code == 0, result.output
    assert "Iteration 1 was skipped (1 in all): The loss is not finite" in result.output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["state"], record["skipped_iterations"]) == ("finished", 1)
    assert record["images_per_ranking"] == 1
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert all(map(math.isfinite, results["final_losses"].values()))
    solver = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["SOLVER"]
    assert (solver["ON_NAN"], solver["ACCUMULATE"], solver["AMP"]["ENABLED"]) == ("skip", 2, True)


def test_parts_that_do_not_divide_the_batch_are_refused(blobs, tmp_path):
    result = train(tmp_path / "run", blobs, "brs", "--accumulate", "3")
    assert result.exit_code == 2
    assert "IMS_PER_BATCH is 2, which does not divide into SOLVER.ACCUMULATE = 3" in result.output
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_step_is_refused(tmp_path):
    result = invoke("replay", tmp_path / "none.pth", "--device", "cpu")
    assert result.exit_code == 2
    assert "There is no file" in result.output
