"""The classic entry point, as Detectron2's users call it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")


def test_a_wrong_config_is_one_sentence_and_exit_code_2(repository: Path):
    script = repository / "projects" / "BucketedRanking" / "train_net.py"
    command = [sys.executable, str(script), "--config-file", "no_such_config"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "did you mean" in result.stderr
    assert "Traceback" not in result.stderr


def test_it_trains_and_evaluates(repository: Path, tmp_path: Path):
    from tests.small_detectors import NARROW

    script = repository / "projects" / "BucketedRanking" / "train_net.py"
    options = [*NARROW, "OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "1"]
    command = [sys.executable, str(script), "--config-file", "retinanet_tiny"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    assert (tmp_path / "run" / "model_final.pth").is_file()
    options[options.index("OUTPUT_DIR") + 1] = str(tmp_path / "eval")
    weights = ["MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth")]
    subprocess.run([*command, "--eval-only", *options, *weights], check=True, capture_output=True)
    assert (tmp_path / "eval" / "results.json").is_file()
