"""Whole runs: what they leave, interruption and resuming, divergence, refusals."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

from bucketed_ranking.balance import FIRST_FACTOR
from bucketed_ranking.engine import hooks, run_folder, runs, setup
from bucketed_ranking.engine.trainer import Trainer
from bucketed_ranking.errors import BucketRankError
from tests.small_detectors import NARROW


def run_config(output: Path, *options: str, detector: str = "retinanet_tiny", loss: str = "brs"):
    fixed = ["SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.WARMUP_ITERS", "2"]
    cfg = setup.load_config(detector, loss=loss, device="cpu", options=[*NARROW, *fixed, *options])
    setup.configure_datasets(cfg, "blobs_train", "blobs_val")
    cfg.OUTPUT_DIR = str(output)
    cfg.SEED = 11
    return cfg


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "model_final.pth", weights_only=True)["model"]


@pytest.mark.usefixtures("blobs")
def test_a_run_leaves_everything_that_is_needed_later(tmp_path):
    cfg = run_config(tmp_path / "run", "SOLVER.MAX_ITER", "12")
    results = runs.train(cfg)
    run_dir = tmp_path / "run"
    assert run_folder.is_run(run_dir)
    assert run_folder.is_finished(run_dir, 12)
    assert not run_folder.is_finished(run_dir, 13)
    record = run_folder.read_json(run_dir / run_folder.RECORD)
    assert record["state"] == "finished"
    assert record["iterations"] == 12
    assert record["seed"] == 11
    assert record["class_names"] == ["red", "green", "blue"]
    assert record["category_ids"] == [2, 5, 9]
    assert results == run_folder.read_json(run_dir / run_folder.RESULTS)
    assert 0 <= results["bbox"]["AP"] <= 100
    assert results["seconds_per_iteration"] > 0
    assert set(results["final_losses"]) == {"loss_rank", "loss_sort", "loss_box_reg"}
    lines = [json.loads(line) for line in (run_dir / "metrics.json").read_text().splitlines()]
    assert any("loss_rank" in line for line in lines)
    assert any("bbox/AP" in line for line in lines)
    log = (run_dir / "log.txt").read_text()
    assert "Environment" in log
    assert "DatasetInfo(name='blobs_train'" in log
    assert "skipped={}" in log
    assert list(run_dir.glob("events.out.tfevents*"))


@pytest.mark.usefixtures("blobs")
@pytest.mark.parametrize(
    ("detector", "loss", "killed_at"),
    [
        ("retinanet_tiny", "brs", 4),
        ("retinanet_tiny", "brs", 1),  # before the first checkpoint
        ("retinanet_tiny", "alrp-exact", 4),  # in the middle of an epoch of its balance
        ("retinanet_tiny", "score", 4),
        ("faster_rcnn_tiny", "score", 4),
    ],
)
def test_resuming_continues_to_the_same_result(tmp_path, detector, loss, killed_at, monkeypatch):
    how = {"detector": detector, "loss": loss}
    runs.train(run_config(tmp_path / "whole", **how))

    # The same run, killed; its only checkpoint, if any, is that of the third step.
    step = Trainer.run_step

    def killed(self):
        if self.iter == killed_at:
            raise RuntimeError("power cut")
        step(self)

    monkeypatch.setattr(Trainer, "run_step", killed)
    with pytest.raises(RuntimeError, match="power cut"):
        runs.train(run_config(tmp_path / "cut", **how))
    monkeypatch.undo()
    assert run_folder.read_json(tmp_path / "cut" / run_folder.RECORD)["state"] == "failed"
    runs.train(run_config(tmp_path / "cut", **how), resume=True)

    expected, found = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    for name, value in expected.items():
        # Not bit by bit: TorchScript compiles Detectron2's focal loss anew after its first calls.
        difference = (found[name] - value).abs().max().item()
        assert difference <= 1e-6 * (1 + value.abs().max().item()), (name, difference)
    whole, cut = (
        run_folder.read_json(tmp_path / name / run_folder.RESULTS)["bbox"]
        for name in ("whole", "cut")
    )
    assert cut == whole
    iterations = [
        json.loads(line)["iteration"]
        for line in (tmp_path / "cut" / "metrics.json").read_text().splitlines()
    ]
    assert iterations == sorted(set(iterations))


@pytest.mark.usefixtures("blobs")
def test_co_detr_resumes_bit_by_bit(tmp_path, monkeypatch):
    """Its extra queries are drawn at random."""
    losses: dict[str, list] = {"whole": [], "cut": []}
    step = Trainer.run_step

    def recorded(self):
        if self.iter == killed_at:
            raise RuntimeError("power cut")
        step(self)
        latest = self.storage.latest()
        found = {key: value for key, (value, _) in latest.items() if key.startswith("loss_")}
        losses[Path(self.cfg.OUTPUT_DIR).name].append((self.iter, found))

    monkeypatch.setattr(Trainer, "run_step", recorded)
    how = {"detector": "co_deformable_detr_tiny", "loss": "brs"}
    options = ["SOLVER.MAX_ITER", "5", "DATALOADER.NUM_WORKERS", "0"]
    killed_at = None
    runs.train(run_config(tmp_path / "whole", *options, **how))
    killed_at = 4  # its only checkpoint is that of the third step
    with pytest.raises(RuntimeError, match="power cut"):
        runs.train(run_config(tmp_path / "cut", *options, **how))
    killed_at = None
    runs.train(run_config(tmp_path / "cut", *options, **how), resume=True)
    assert [iteration for iteration, _ in losses["cut"]] == [0, 1, 2, 3, 3, 4]
    assert len(losses["whole"][0][1]) > 15
    assert losses["cut"][4:] == losses["whole"][3:]
    expected, found = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.usefixtures("blobs")
def test_balance_of_alrp_knows_the_epoch_and_starts_anew_with_a_new_run(tmp_path):
    runs.train(run_config(tmp_path / "first", loss="alrp-exact"))
    last = weights_of(tmp_path / "first")
    # 12 images, 2 at a time: the last of the 6 steps ends an epoch, here and when resuming above.
    assert last["balance.factor"] != FIRST_FACTOR
    assert last["balance.iterations"] == 0

    weights = str(tmp_path / "first" / "model_final.pth")
    trainer = Trainer(run_config(tmp_path / "next", "MODEL.WEIGHTS", weights, loss="alrp-exact"))
    trainer.resume_or_load(resume=False)
    assert trainer.model.balance.epoch_iterations == 6
    assert trainer.model.balance.factor == FIRST_FACTOR
    assert trainer.model.balance.iterations == 0
    assert torch.equal(trainer.model.head.cls_score.weight.cpu(), last["head.cls_score.weight"])


@pytest.mark.usefixtures("blobs")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_a_checkpoint_to_resume_from(tmp_path, monkeypatch, number):
    step = Trainer.run_step

    def interrupted(self):
        step(self)
        if self.iter == 1:
            os.kill(os.getpid(), number)

    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(Trainer, "run_step", interrupted)
    with pytest.raises(hooks.TrainingInterruptedError) as stop:
        runs.train(run_config(tmp_path / "run"))
    assert stop.value.iteration == 1
    assert {n: signal.getsignal(n) for n in handlers} == handlers
    assert (tmp_path / "run" / "model_0000001.pth").is_file()
    assert run_folder.read_json(tmp_path / "run" / run_folder.RECORD)["state"] == "interrupted"
    monkeypatch.undo()
    runs.train(run_config(tmp_path / "run"), resume=True)
    assert run_folder.is_finished(tmp_path / "run", 6)


@pytest.mark.usefixtures("blobs")
def test_a_stop_in_the_middle_of_an_evaluation_does_it_anew_on_resuming(tmp_path, monkeypatch):
    options = ("TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_PERIOD", "100")
    runs.train(run_config(tmp_path / "whole", *options))
    shown = Trainer._on_evaluated_batch

    def interrupted(self, done, total):
        if done == 2:
            assert total > 2
            os.kill(os.getpid(), signal.SIGTERM)
        shown(self, done, total)

    monkeypatch.setattr(Trainer, "_on_evaluated_batch", interrupted)
    with pytest.raises(hooks.TrainingInterruptedError) as stop:
        runs.train(run_config(tmp_path / "cut", *options))
    monkeypatch.undo()
    assert stop.value.iteration == 1
    assert (tmp_path / "cut" / "model_0000001.pth").is_file()
    runs.train(run_config(tmp_path / "cut", *options), resume=True)
    whole, cut = (
        {row["iteration"]: row.get("bbox/AP") for row in run_folder.read_metrics(tmp_path / name)}
        for name in ("whole", "cut")
    )
    assert cut == whole
    assert cut[1] is not None


@pytest.mark.usefixtures("blobs")
def test_a_run_that_was_trained_but_not_evaluated_is_evaluated(tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("evaluation broke")

    monkeypatch.setattr("bucketed_ranking.engine.trainer.evaluate_model", fails)
    with pytest.raises(RuntimeError, match="evaluation broke"):
        runs.train(run_config(tmp_path / "run"))
    monkeypatch.undo()
    assert not run_folder.is_finished(tmp_path / "run", 6)
    results = runs.train(run_config(tmp_path / "run"), resume=True)
    assert results["bbox"]["AP"] is not None
    assert run_folder.read_json(tmp_path / "run" / run_folder.RECORD)["iterations"] == 6


@pytest.mark.usefixtures("blobs")
def test_progress_and_evaluations_on_the_way_are_printed(tmp_path, capsys):
    runs.train(run_config(tmp_path / "run", "TEST.EVAL_PERIOD", "2"))
    printed = capsys.readouterr().out
    assert "after 2 iterations: AP " in printed
    assert "after 4 iterations: AP " in printed
    assert "RankingRetinaNet brs 6/6" in printed
    assert "images/s" in printed
    assert "rank " in printed


@pytest.mark.usefixtures("blobs")
def test_a_run_of_two_iterations_may_evaluate_after_each(tmp_path):
    cfg = run_config(tmp_path / "run", "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "1")
    assert runs.train(cfg)["iterations"] == 2
    rows = [row["iteration"] for row in run_folder.read_metrics(tmp_path / "run")]
    assert rows == sorted(set(rows))


@pytest.mark.usefixtures("blobs")
def test_divergence_is_one_sentence_and_keeps_the_log(tmp_path):
    cfg = run_config(tmp_path / "run", "SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", "0")
    with pytest.raises(BucketRankError, match=r"Training diverged at iteration \d+: .*BASE_LR"):
        runs.train(cfg)
    assert run_folder.read_json(tmp_path / "run" / run_folder.RECORD)["state"] == "diverged"
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.usefixtures("blobs")
def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(BucketRankError, match="is not empty; add --resume"):
        runs.train(run_config(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("blobs")
def test_resuming_what_is_not_there_or_another_run_is_refused(tmp_path):
    with pytest.raises(BucketRankError, match="no run to resume"):
        runs.train(run_config(tmp_path / "none"), resume=True)
    runs.train(run_config(tmp_path / "run", "SOLVER.MAX_ITER", "1"))
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    with pytest.raises(BucketRankError, match=r"LOSS 'brs', not 'bap'"):
        runs.train(run_config(tmp_path / "run", loss="bap"), resume=True)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before


def test_the_seed_of_a_run_stays_its_own(tmp_path):
    cfg = setup.load_config("retinanet_tiny", device="cpu")
    run_folder.choose_seed(cfg, None)
    assert cfg.SEED >= 0
    run_folder.choose_seed(cfg, 7)
    assert cfg.SEED == 7
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.SEED = 42
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / run_folder.RECORD).write_text("{torn")
    cfg.SEED = -1
    run_folder.choose_seed(cfg, None, resume=True)
    assert cfg.SEED == 42
    with pytest.raises(BucketRankError, match="started with seed 42, not 7"):
        run_folder.choose_seed(cfg, 7, resume=True)


def test_the_time_of_a_step_is_the_median_after_warm_up():
    with EventStorage() as storage:
        for seconds in (9.0, 9.0, 1.0, 3.0, 2.0):
            storage.put_scalar("time", seconds)
            storage.step()
    assert runs.median_seconds(storage, first=2) == 2.0
    assert runs.median_seconds(storage, first=5) is None
    assert runs.median_seconds(EventStorage(), first=0) is None


@pytest.mark.usefixtures("blobs")
def test_a_global_ranking_is_of_the_batch_whatever_the_number_of_processes(tmp_path):
    options = "SOLVER.IMS_PER_BATCH", "8", "MODEL.RANKING.SCOPE"
    for scope, images in (("process", 4), ("global", 8)):
        cfg = run_config(tmp_path, *options, scope, loss="rs-exact")
        assert run_folder.images_per_ranking(cfg, 2) == images
        assert (run_folder.config_hash(cfg, 2) == runs.config_hash(cfg, 1)) == (scope == "global")
