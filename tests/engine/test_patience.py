"""Early stopping: when it comes, what it leaves, and how such a run goes on."""

import os
import signal

import pytest
import torch

from bucketed_ranking.engine import run_folder, runs
from bucketed_ranking.engine.processes import TrainingInterruptedError
from bucketed_ranking.engine.run_records import read_run
from bucketed_ranking.engine.trainer import Trainer
from bucketed_ranking.errors import BucketRankError
from tests.engine.test_runs import run_config

pytestmark = pytest.mark.usefixtures("blobs")

PATIENCE = ("SOLVER.PATIENCE", "2", "TEST.EVAL_PERIOD", "1", "DATALOADER.NUM_WORKERS", "0")
SENTENCE = (
    "Stopped early after 4 iterations: none of the last 2 evaluations had a better AP than 20.0 "
    "(model_best.pth)."
)


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """The iterations that are run."""
    step, done = Trainer.run_step, []

    def counted(self):
        done.append(self.iter)
        step(self)

    monkeypatch.setattr(Trainer, "run_step", counted)
    return done


def evaluations(monkeypatch, *aps: float | None) -> None:
    """What the next evaluations find; None: the process is killed in it."""
    left = list(aps)

    def evaluate(*args, **kwargs):
        ap = left.pop(0)
        if ap is None:
            raise SystemExit("killed")
        return {"bbox": {"AP": ap, "AP50": ap, "AP75": ap}}

    monkeypatch.setattr("bucketed_ranking.engine.trainer.evaluate_model", evaluate)


def check_stopped_after_4(folder, steps: list[int], printed: str) -> None:
    assert steps == [0, 1, 2, 3]
    assert SENTENCE in printed.splitlines()
    record = run_folder.read_json(folder / run_folder.RECORD)
    assert (record["state"], record["iterations"], record["stopped_early_after"]) == (
        "finished", 4, 2,
    )  # fmt: skip
    results = run_folder.read_json(folder / run_folder.RESULTS)
    assert results["iterations"] == 4
    assert results["bbox"]["AP"] == 5.0
    assert results["best"] == {"iterations": 2, "bbox/AP": 20.0}
    for name, iteration in (("final", 3), ("best", 1)):
        saved = torch.load(folder / f"model_{name}.pth", weights_only=True)
        assert saved["iteration"] == iteration
    # Finished for its own patience and for less, not for more or for none.
    for patience, finished in ((None, True), (2, True), (1, True), (3, False), (0, False)):
        assert run_folder.is_finished(folder, 6, patience) == finished
    record = read_run(folder, 6)
    assert (record["state"], record["iterations"]) == ("finished", 4)
    assert record["curves"]["bbox"] == [(1, 10.0), (2, 20.0), (3, 20.0), (4, 5.0)]


def test_training_ends_with_the_patience_and_goes_on_with_more(
    tmp_path, monkeypatch, steps, capsys
):
    evaluations(monkeypatch, 10.0, 20.0, 20.0, 5.0, 5.0)
    runs.train(run_config(tmp_path, *PATIENCE))
    check_stopped_after_4(tmp_path, steps, capsys.readouterr().out)
    # With more patience it goes on, and here finds a better one.
    evaluations(monkeypatch, 30.0, 25.0)
    results = runs.train(run_config(tmp_path, *PATIENCE, "SOLVER.PATIENCE", "3"), resume=True)
    assert steps == [0, 1, 2, 3, 4, 5]
    assert (results["iterations"], results["bbox"]["AP"]) == (6, 25.0)
    assert results["best"] == {"iterations": 5, "bbox/AP": 30.0}
    assert run_folder.read_json(tmp_path / run_folder.RECORD)["stopped_early_after"] == 0
    assert run_folder.is_finished(tmp_path, 6, 2)


def test_a_stopped_run_counts_on_when_resumed(tmp_path, monkeypatch, steps, capsys):
    evaluations(monkeypatch, 10.0, 20.0, 20.0, 5.0, 5.0)
    counted = Trainer.run_step

    def interrupted(self):
        counted(self)
        if self.iter == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "run_step", interrupted)
    with pytest.raises(TrainingInterruptedError):
        # Its evaluation of this step is done: no batch of it asks for the stop.
        runs.train(run_config(tmp_path, *PATIENCE))
    monkeypatch.setattr(Trainer, "run_step", counted)
    runs.train(run_config(tmp_path, *PATIENCE), resume=True)
    check_stopped_after_4(tmp_path, steps, capsys.readouterr().out)


def test_a_run_killed_after_its_patience_ended_is_finished_when_resumed(
    tmp_path, monkeypatch, steps, capsys
):
    evaluations(monkeypatch, 10.0, 20.0, 20.0, 5.0, None, 5.0)
    with pytest.raises(SystemExit):
        runs.train(run_config(tmp_path, *PATIENCE))
    assert not run_folder.is_finished(tmp_path, 6, 2)
    capsys.readouterr()
    runs.train(run_config(tmp_path, *PATIENCE), resume=True)
    check_stopped_after_4(tmp_path, steps, capsys.readouterr().out)


def test_evaluations_without_an_ap_count(tmp_path, monkeypatch, steps, capsys):
    evaluations(monkeypatch, *[float("nan")] * 3)
    runs.train(run_config(tmp_path, *PATIENCE))
    assert steps == [0, 1]
    sentence = "Stopped early after 2 iterations: none of the last 2 evaluations had an AP."
    assert sentence in capsys.readouterr().out.splitlines()
    assert run_folder.is_finished(tmp_path, 6, 2)


def test_patience_that_ends_with_the_run_says_nothing(tmp_path, monkeypatch, steps, capsys):
    evaluations(monkeypatch, 20.0, 10.0, 10.0)
    runs.train(run_config(tmp_path, *PATIENCE, "SOLVER.MAX_ITER", "3"))
    assert steps == [0, 1, 2]
    assert "Stopped early" not in capsys.readouterr().out
    assert run_folder.is_finished(tmp_path, 3, 2)


def test_patience_without_evaluations_is_refused(tmp_path):
    with pytest.raises(BucketRankError, match=r"PATIENCE .*TEST.EVAL_PERIOD"):
        runs.train(run_config(tmp_path / "run", "SOLVER.PATIENCE", "2", "TEST.EVAL_PERIOD", "0"))
    assert not (tmp_path / "run").exists()
