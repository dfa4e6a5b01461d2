"""`bucketrank profile-loss`."""

import json
import subprocess
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bucketrank_cli.main import app
from bucketrank_cli.profile_loss import print_profile
from tests.benchmarks import given

SMALL = [
    "profile-loss", "--device", "cpu", "--losses", "rs,rs-exact,focal", "--positives", "5",
    "--negatives", "1e2,1e3", "--repeats", "2", "--warmup", "0",
]  # fmt: skip


def test_the_command_measures_and_writes(tmp_path):
    result = CliRunner().invoke(app, [*SMALL, "--regime", "trained", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "trained: P = 5, N = 1,000" in result.stdout
    assert "speed-up" in result.stdout
    assert "1/10 trained: P = 5, N = 100: rs\n" in result.stdout
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert [case["grid_negatives"] for case in profile["cases"]] == [100, 1000]
    assert (tmp_path / "profile.csv").is_file()
    assert (tmp_path / "profile.png").stat().st_size > 10_000


def test_what_is_skipped_is_printed(tmp_path):
    arguments = [*SMALL, "--losses", "rs", "--positives", "500", "--max-seconds", "0.001"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "rs skipped: predicted to take" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--losses", "dice"], "There is no loss 'dice'"),
        (["--negatives", "lots"], "--negatives takes whole numbers"),
        (["--positives", "0"], "--positives takes whole numbers from 1 on"),
        (["--positives", "1.5,2"], "not '1.5'"),
        (["--regime", "late"], "'late' is not one of 'start', 'trained', 'both'"),
        (["--dtype", "int8"], "'int8' is not one of 'float32'"),
        (["SOLVER.MAX_ITER", "3"], "they go with --from-training CONFIG"),
    ],
)
def test_what_a_user_can_mend_is_said(tmp_path, arguments, sentence):
    result = CliRunner().invoke(app, [*SMALL, *arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_it_works_without_detectron2_but_for_training(tmp_path):
    script = (
        "import sys; sys.modules['detectron2'] = None\n"
        "from bucketrank_cli.main import main; sys.argv[0] = 'bucketrank'; main()"
    )
    run = [sys.executable, "-c", script, *SMALL]
    done = subprocess.run([*run, "--out", str(tmp_path / "a")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "a" / "profile.png").is_file()
    training = ["--from-training", "retinanet_tiny", "--out", str(tmp_path / "b")]
    done = subprocess.run([*run, *training], capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs detectron2" in done.stderr


def test_the_table_fits_80_columns_and_says_why_something_is_missing(capsys):
    print_profile(given.profile(), Console(width=80))
    text = capsys.readouterr().out
    assert f"ap skipped: {given.TOO_SLOW}" in text
    assert "Some CPU, 2 threads" in text
    assert "8,000" in text
    assert "[1000, 1]" in text
    assert max(map(len, text.split("ms: forward")[0].splitlines())) <= 80
