"""Run folders: which checkpoint a run goes on from, its metrics, and what may change."""

import json
import multiprocessing
import shutil
import time
from pathlib import Path

import pytest
import torch

from bucketed_ranking.engine import run_folder, runs
from bucketed_ranking.engine.checkpoint import newest_checkpoint
from bucketed_ranking.engine.trainer import Trainer
from bucketed_ranking.errors import BucketRankError
from tests.engine.test_runs import run_config


def save(folder: Path, name: str, iteration: int, weight: float = 1.0) -> Path:
    path = folder / f"{name}.pth"
    torch.save({"model": {"w": torch.tensor([weight])}, "iteration": iteration}, path)
    return path


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    first = save(tmp_path, "model_0000004", 4)
    final = save(tmp_path, "model_final", 9)
    save(tmp_path, "model_best", 99)
    assert newest_checkpoint(tmp_path) == (final, 10, [])
    last = save(tmp_path, "model_0000014", 14)  # trained longer than it was to be at first
    assert newest_checkpoint(tmp_path).path == last
    last.write_bytes(last.read_bytes()[:-100])
    (tmp_path / "model_0000019.pth").touch()
    save(tmp_path, "model_0000024", 24, float("nan"))
    newest = newest_checkpoint(tmp_path)
    assert newest.path == final
    assert sorted(reason.split()[0] for reason in newest.skipped) == [
        "model_0000014.pth",
        "model_0000019.pth",
        "model_0000024.pth",
    ]
    first.unlink()
    final.write_text("no checkpoint")
    with pytest.raises(BucketRankError, match=r"No checkpoint .*model_final.pth is damaged"):
        newest_checkpoint(tmp_path)


@pytest.fixture(scope="module")
def run(blobs, tmp_path_factory) -> Path:
    """A run of 6 iterations, with checkpoints after 3 and 6."""
    output = tmp_path_factory.mktemp("run") / "run"
    runs.train(run_config(output))
    return output


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return shutil.copytree(run, tmp_path / "run")


def test_a_torn_run_goes_on(copy, run, capsys):
    (copy / "model_final.pth").write_bytes(b"")
    (copy / "last_checkpoint").unlink()
    (copy / "run.json").write_text('{"state": "trai')
    with (copy / "metrics.json").open("a") as metrics:
        metrics.write('{"iteration": 19, "total_l')
    runs.train(run_config(copy), resume=True)
    assert "Skipped a checkpoint: model_final.pth is damaged" in (copy / "log.txt").read_text()
    expected, found = (
        torch.load(each / "model_final.pth", weights_only=True)["model"] for each in (run, copy)
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert [row["iteration"] for row in run_folder.read_metrics(copy)] == [5, 6]


def test_a_damaged_record_is_told(copy):
    (copy / "run.json").write_text("")
    with pytest.raises(BucketRankError, match=r"run.json is damaged .*--resume"):
        run_folder.is_finished(copy, 6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.IMS_PER_BATCH", "4"),
        ("MODEL.FPN.OUT_CHANNELS", "16"),
        ("INPUT.MIN_SIZE_TRAIN", "(96,)"),
        ("MODEL.RANKING.DELTA", "1.0"),
        ("SOLVER.MAX_ITER", "5"),
    ],
)
def test_what_must_stay_is_refused_before_anything_is_written(run, key, value):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(BucketRankError, match=key):
        runs.train(run_config(run, key, value), resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("blobs")
def test_another_learning_rate_is_that_of_the_resumed_run(copy):
    (copy / "model_final.pth").unlink()
    changed = ("SOLVER.BASE_LR", "0.0001", "SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.MAX_ITER", "8")
    cfg = run_config(copy, *changed)
    trainer = Trainer(cfg)
    trainer.resume_or_load()
    assert trainer.start_iter == 3
    group = trainer.optimizer.param_groups[0]
    assert (group["initial_lr"], group["weight_decay"]) == (0.0001, 0.5)
    runs.train(cfg, resume=True)
    assert run_folder.read_metrics(copy)[-2]["lr"] <= 0.0001
    assert run_folder.read_config(copy).SOLVER.BASE_LR == 0.0001
    assert run_folder.read_json(copy / run_folder.RECORD)["iterations"] == 8


def _hold(output: Path, held) -> None:
    with run_folder.lock(output):
        held.set()
        time.sleep(100)


def test_a_second_training_in_one_folder_is_refused(run, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    held = spawn.Event()
    other = spawn.Process(target=_hold, args=(run, held))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(BucketRankError, match="Another training writes to"):
            run_folder.prepare_run(run_config(run), resume=True)
    finally:
        other.kill()
        other.join()
    run_folder.prepare_run(run_config(run), resume=True)  # a dead process keeps no lock


@pytest.mark.usefixtures("blobs")
def test_an_evaluation_that_a_kill_cut_off_is_done_on_resuming(tmp_path, monkeypatch):
    options = ("TEST.EVAL_PERIOD", "3")
    runs.train(run_config(tmp_path / "whole", *options))

    def killed(*args, **kwargs):
        raise SystemExit("killed")

    monkeypatch.setattr("bucketed_ranking.engine.trainer.evaluate_model", killed)
    with pytest.raises(SystemExit):
        runs.train(run_config(tmp_path / "cut", *options))
    monkeypatch.undo()
    (tmp_path / "cut" / "metrics.json").write_text("")  # what a kill would have left
    runs.train(run_config(tmp_path / "cut", *options), resume=True)
    times = ("time", "data_time", "rank_data_time", "eta_seconds")
    whole, cut = (
        [
            json.dumps({k: v for k, v in row.items() if k not in times})
            for row in run_folder.read_metrics(tmp_path / name)
        ]
        for name in ("whole", "cut")
    )
    assert whole == cut
    assert '"iteration": 2' in whole[0]
    assert "bbox/AP" in whole[0]


@pytest.mark.usefixtures("blobs")
def test_only_the_newest_checkpoints_and_the_best_stay(tmp_path):
    options = ("SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CHECKPOINT_KEEP", "2")
    runs.train(run_config(tmp_path / "run", *options, "TEST.EVAL_PERIOD", "2"))
    left = sorted(path.name for path in (tmp_path / "run").glob("*.pth"))
    assert left == ["model_0000003.pth", "model_0000004.pth", "model_best.pth", "model_final.pth"]
    best = torch.load(tmp_path / "run" / "model_best.pth", weights_only=True)
    rows = run_folder.read_metrics(tmp_path / "run")
    aps = {row["iteration"]: row["bbox/AP"] for row in rows if "bbox/AP" in row}
    assert aps[best["iteration"]] == max(aps.values())
    assert set(best) == {"model", "iteration"}
