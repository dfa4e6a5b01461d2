"""`bucketrank table`, as a user types it: a grid with a failure, an interruption and a resume."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from bucketrank_cli.main import app
from tests.small_detectors import NARROW

ITERATIONS = 40
SHORT = [*NARROW, "SOLVER.MAX_ITER", str(ITERATIONS), "SOLVER.CHECKPOINT_PERIOD", "10"]


def grid(blobs: str, output: Path, *more: str) -> list[str]:
    return [
        "table", "--dataset", blobs, "--losses", "score,brs", "--output", str(output),
        "--device", "cpu", *more, *SHORT,
    ]  # fmt: skip


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def states(output: Path) -> dict[str, str]:
    cells = json.loads((output / "table.json").read_text())["cells"]
    return {cell["name"]: cell["state"] for cell in cells}


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists() or not path.read_text().strip():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_failure_interruption_and_resume_of_cells_of_two_processes(blobs, tmp_path):
    def arguments(*more: str) -> list[str]:
        cells = "--detectors", "retinanet_tiny", "--processes-per-cell", "2"
        return grid(blobs, output, *cells, *more)

    output = tmp_path / "table"
    # In the way of one cell: what a user has there is not overwritten.
    obstacle = output / "cells" / "retinanet_tiny-brs-seed1" / "notes.txt"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("mine")
    command = [sys.executable, "-m", "bucketrank_cli", *arguments()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    ) as process:
        first = output / "cells" / "retinanet_tiny-score-seed1"
        wait_for(first / "metrics.json", process)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert "The same command goes on" in printed
    assert subprocess.run(["pgrep", "-f", first], capture_output=True, text=True).stdout == ""
    assert states(output)["retinanet_tiny-score-seed1"] == "unfinished"
    interrupted = json.loads((first / "run.json").read_text())
    assert interrupted["state"] == "interrupted"
    assert 0 < interrupted["iterations"] < ITERATIONS
    assert not (first / "results.json").exists()

    result = invoke(*arguments())
    assert result.exit_code == 1, result.output
    assert "1 cells failed" in result.output
    assert states(output) == {
        "retinanet_tiny-score-seed1": "finished",
        "retinanet_tiny-brs-seed1": "failed",
    }
    assert "is not empty" in (output / "table.md").read_text()
    assert obstacle.read_text() == "mine"
    # It went on where it had stopped.
    log = (first / "log.txt").read_text()
    assert f"Starting training from iteration {interrupted['iterations']}" in log

    obstacle.unlink()
    finished = (first / "results.json").stat().st_mtime_ns
    result = invoke(*arguments())
    assert result.exit_code == 0, result.output
    assert set(states(output).values()) == {"finished"}
    assert (first / "results.json").stat().st_mtime_ns == finished
    content = json.loads((output / "table.json").read_text())
    for cell in content["cells"]:
        assert cell["bbox_AP"] is not None
        assert cell["images_per_ranking"] == 1
        run = json.loads((output / "cells" / cell["name"] / "run.json").read_text())
        assert run["processes"] == 2
        assert cell["seconds_per_iteration"] > 0
        if cell["name"] != first.name:  # too few iterations were left to time its losses
            assert 0 < cell["classification_loss_share"] < 1
        assert cell["peak_memory_bytes"] > 2**27
        assert [iteration for iteration, _ in cell["curves"]["bbox"]] == [10, 20, 30, 40]

    result = invoke(*arguments(), "SOLVER.BASE_LR", "0.5")
    assert result.exit_code == 2
    assert "had another config" in result.output


def test_dry_run_and_jobs_write_no_run(blobs, tmp_path):
    output, jobs = tmp_path / "my table", tmp_path / "jobs.txt"
    result = invoke(*grid(blobs, output, "--dry-run"))
    assert result.exit_code == 0, result.output
    assert "retinanet_tiny-brs-seed1" in result.output
    assert "4 cells into" in result.output
    assert "4 cells that take as long as the first ones will show" in result.output
    assert not output.exists()

    result = invoke(*grid(blobs, output, "--emit-jobs", str(jobs)))
    assert result.exit_code == 0, result.output
    lines = jobs.read_text().splitlines()
    assert len(lines) == 4
    words = shlex.split(lines[1])
    assert words[:3] == ["bucketrank", "train", "retinanet_tiny"]
    assert words[words.index("--output") + 1] == str(output / "cells" / "retinanet_tiny-brs-seed1")
    result = invoke("table", "--report-only", "--output", str(output))
    assert result.exit_code == 0, result.output
    assert set(states(output).values()) == {"not started"}
    assert invoke(*grid(blobs, output, "--emit-jobs", str(jobs))).exit_code == 2


def test_without_the_data_of_any_cell(tmp_path):
    output = tmp_path / "table"
    result = invoke("table", "--profile", "paper", "--device", "cpu", "--output", str(output))
    assert result.exit_code == 2
    assert "No cell of this table can be run" in result.output
    assert not output.exists()
    result = invoke("table", "--profile", "paper", "--device", "cpu", "--dry-run")
    assert result.exit_code == 0, result.output
    # The paper's own time stands in: 90,000 iterations of 0.17 s, evaluations.
    assert "The paper's rankings span 4 images, here 16" in result.output
    (line,) = [x for x in result.output.splitlines() if x.startswith("faster_rcnn_R_50_FPN_1x-brs")]
    assert re.search(r"90000 +16 +5\.\d h +published, 4 A100", line)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--variant", "fixed"], "--variant takes NAME:KEY=VALUE"),
        (["--variant", "a:SEED=1", "--variant", "a:SEED=2"], "two variants called 'a'"),
        (["--variant", "a:SEEDS=1"], "no config key 'SEEDS'"),
        (["--timing", "--image-size", "800"], "--image-size takes HEIGHTxWIDTH"),
        (["--timing", "--image-size", "0x5"], "--image-size takes HEIGHTxWIDTH"),
        (["--profile", "papers"], "'papers' is not one of 'default', 'paper'"),
        (["--seeds", "1,x"], "--seeds takes whole numbers from 0 on"),
        (["--seeds", "-1"], "--seeds takes whole numbers from 0 on"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(tmp_path, arguments, sentence):
    result = invoke("table", *arguments, "--output", str(tmp_path / "table"))
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.replace("│", " ").split())
    assert not list(tmp_path.iterdir())
