"""Trainings by several real processes, started, stopped and killed as users and schedulers do."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bucketed_ranking.engine import processes
from bucketed_ranking.engine.processes import Processes, started_outside
from bucketed_ranking.engine.run_folder import read_metrics
from bucketed_ranking.errors import BucketRankError
from bucketrank_cli.main import app
from tests.small_detectors import NARROW

# Every start takes seconds of two cores, and far more of a busy machine.
pytestmark = pytest.mark.timeout(900)

ITERATIONS, PERIOD = 60, 5
TIMES = {"time", "data_time", "rank_data_time", "eta_seconds"}


def arguments(output: Path, *options: str) -> list[str]:
    command = ["train", "retinanet_tiny", "--dataset", "blobs", "--loss", "rs-exact", "--seed", "1"]
    command += ["--device", "cpu", "--output", str(output), *options, *NARROW]
    command += ["SOLVER.MAX_ITER", str(ITERATIONS), "SOLVER.CHECKPOINT_PERIOD", str(PERIOD)]
    # An evaluation at an iteration at which the main process alone writes metrics, and others.
    return [*command, "TEST.EVAL_PERIOD", "20", "DATALOADER.NUM_WORKERS", "1"]


def start(output: Path, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    several = () if launcher else ("--num-processes", "2")
    command = [sys.executable, *launcher, "-m", "bucketrank_cli"]
    with output.with_suffix(".out").open("a") as out:
        return subprocess.Popen(
            [*command, *arguments(output, *several, *options)],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def printed(output: Path) -> str:
    return output.with_suffix(".out").read_text()


def group(process: subprocess.Popen) -> dict[int, str]:
    """The living processes of a command's group, and their command lines."""
    listed = subprocess.run(
        ["ps", "-ewwo", "pid=,pgid=,stat=,args="], capture_output=True, text=True
    )
    rows = [line.split(None, 3) for line in listed.stdout.splitlines()]
    return {int(r[0]): r[3] for r in rows if int(r[1]) == process.pid and r[2][0] != "Z"}


def trainers(process: subprocess.Popen) -> list[int]:
    """The processes that train, in the order of their ranks; image workers come after them."""
    return [pid for pid, line in group(process).items() if "multiprocessing.spawn" in line][:2]


def wait_for(output: Path, iterations: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 200
    while not (output / f"model_{iterations - 1:07d}.pth").exists():
        assert process.poll() is None, printed(output)
        assert time.monotonic() < end, printed(output)
        time.sleep(0.02)


def ended(process: subprocess.Popen) -> int:
    """The exit code of a command of which nothing is left."""
    code = process.wait(200)
    end = time.monotonic() + 10  # image workers notice within 5 s that their process was killed
    while left := group(process):
        assert time.monotonic() < end, left
        time.sleep(0.1)
    return code


@pytest.fixture(scope="module")
def whole(blobs, tmp_path_factory) -> Path:
    """A run of two processes that nothing has disturbed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert ended(start(output)) == 0, printed(output)
    return output


def assert_same_run(output: Path, whole: Path) -> None:
    expected, found = (
        torch.load(each / "model_final.pth", weights_only=True)["model"] for each in (whole, output)
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    rows = [
        [json.dumps({k: v for k, v in row.items() if k not in TIMES}) for row in read_metrics(each)]
        for each in (whole, output)
    ]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_two_processes_train_and_evaluate(whole):
    assert "Traceback" not in printed(whole)
    record = json.loads((whole / "run.json").read_text())
    assert (record["state"], record["iterations"]) == ("finished", ITERATIONS)
    assert record["processes"] == 2
    assert (whole / "report.html").is_file()
    assert "after 20 iterations: AP" in printed(whole)
    assert "2 processes" in printed(whole)
    left = {path.name for path in whole.glob("*.pth")}
    # The newest three, the best of the evaluations, and the last.
    numbered = {"model_0000044.pth", "model_0000049.pth", "model_0000054.pth"}
    assert left == numbered | {"model_best.pth", "model_final.pth"}


@pytest.mark.slow
def test_stopped_and_killed_it_ends_as_if_nothing_had_happened(whole, tmp_path):
    output = tmp_path / "run"
    # As schedulers do it, as the system does, and as a person who knows one process.
    process = start(output)
    wait_for(output, 10, process)
    os.killpg(process.pid, signal.SIGTERM)
    assert ended(process) == 130, printed(output)
    assert re.search(r"Stopped after iteration \d+; the checkpoint is saved", printed(output))

    process = start(output, "--resume")
    wait_for(output, 20, process)
    os.killpg(process.pid, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL

    process = start(output, "--resume")
    wait_for(output, 35, process)
    os.kill(trainers(process)[1], signal.SIGTERM)
    assert ended(process) == 130, printed(output)

    assert ended(start(output, "--resume")) == 0, printed(output)
    assert "Traceback" not in printed(output)
    assert_same_run(output, whole)


@pytest.mark.slow
def test_torchrun_trains_the_same_and_stops(whole, tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    output = tmp_path / "run"
    process = start(output, launcher=torchrun)
    wait_for(output, 10, process)
    os.killpg(process.pid, signal.SIGTERM)
    ended(process)  # torchrun has exit codes, and a traceback, of its own
    assert printed(output).count("Stopped after iteration") == 1
    assert "This is a bug" not in printed(output)
    assert ended(start(output, "--resume", launcher=torchrun)) == 0, printed(output)
    assert printed(output).count("Everything is in") == 1
    assert_same_run(output, whole)
    assert ended(start(output, "--resume", launcher=torchrun)) == 0, printed(output)
    assert "there is nothing left to do" in printed(output)


@pytest.mark.slow
def test_the_death_of_a_process_is_one_sentence(blobs, tmp_path):
    output = tmp_path / "run"
    process = start(output)
    wait_for(output, 5, process)
    os.kill(trainers(process)[0], signal.SIGKILL)
    assert ended(process) == 2
    assert "Training process 0 was ended by SIGKILL" in printed(output)
    assert "Traceback" not in printed(output)


@pytest.mark.usefixtures("blobs")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--num-processes", "3"], "SOLVER.IMS_PER_BATCH is 2, which does not divide over 3"),
        (["--num-gpus", "64"], "64 processes need a GPU each, but this machine has"),
        (["--num-machines", "2"], "Several machines need --dist-url"),
        (["--num-machines", "2", "--machine-rank", "2"], "have the ranks 0 to 1"),
    ],
)
def test_processes_that_cannot_be_are_refused_before_anything_starts(options, said, tmp_path):
    result = CliRunner().invoke(app, arguments(tmp_path / "run", *options))
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "run").exists()


def test_gpus_of_several_processes_are_not_chosen_by_number():
    with pytest.raises(BucketRankError, match="CUDA_VISIBLE_DEVICES"):
        Processes(2).check("cuda:1")


def test_who_started_a_process():
    assert started_outside({}) is None
    # A script of sbatch is no task of several.
    assert started_outside({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) is None
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert started_outside(torchrun) == (5, 8, 1, 4)
    slurm = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}
    slurm |= {"SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    with pytest.raises(BucketRankError, match="MASTER_ADDR"):
        started_outside(slurm)
    assert started_outside({**slurm, "MASTER_ADDR": "a", "MASTER_PORT": "1"}) == (5, 8, 1, 4)


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    before = signal.getsignal(signal.SIGTERM)
    with processes.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        now[0] = 0.5
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGTERM
        now[0] = 2.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
