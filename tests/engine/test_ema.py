"""Averaged weights: what goes into them, where they are used, and that resuming keeps them."""

import re

import pytest
import torch
from torch import Tensor

from bucketed_ranking.engine import inference, run_folder, runs
from bucketed_ranking.engine.failed_step import load_step
from bucketed_ranking.engine.trainer import Trainer
from bucketed_ranking.errors import BucketRankError
from tests.engine.test_runs import run_config
from tests.engine.test_step import train
from tests.parallel_trainers import bad_image, build_step, named_batch

EMA = ("SOLVER.EMA_DECAY", "0.9999")


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_the_average_takes_in_each_step_that_was_done_and_no_other(tmp_path):
    # The second of four batches, of two parts each, is left out.
    batches = [
        named_batch("a", "b"),
        [*named_batch("c"), bad_image("bad")],
        *[named_batch("d", "e")] * 2,
    ]
    how = ("SOLVER.ACCUMULATE", "2", "SOLVER.ON_NAN", "skip", "SOLVER.BASE_LR", "0.001")
    step = build_step(tmp_path, batches, "retinanet_tiny", "rs-exact", *how, *EMA)
    plain = build_step(tmp_path / "plain", batches, "retinanet_tiny", "rs-exact", *how)
    weights = []
    update = step.average.update

    def remember(model):
        weights.append({k: v.double() for k, v in model.state_dict().items()})
        update(model)

    step.average.update = remember
    train(step, 4)
    train(plain, 4)
    assert_equal(step.model.state_dict(), plain.model.state_dict())
    assert (step.average.updates, len(weights), step.skipped) == (3, 3, 1)
    keep_2, keep_3 = 1 - 2**-0.5, 1 - 3**-0.5
    for name, found in step.average.module.state_dict().items():
        first, second, third = (each[name] for each in weights)
        expected = keep_2 * first + (1 - keep_2) * second
        expected = keep_3 * expected + (1 - keep_3) * third
        if not found.is_floating_point():
            expected = third  # a number of batches
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(
        step.average.module.head.cls_score.weight, step.model.head.cls_score.weight
    )
    # A step that is run again is one of the trained weights.
    saved = load_step(tmp_path / "nan" / "iteration_0000001.pth")[1]["model"]
    torch.testing.assert_close(
        saved["head.cls_score.weight"].double(), weights[0]["head.cls_score.weight"], rtol=0, atol=0
    )


def test_a_step_that_the_scaler_leaves_out_does_not_count(tmp_path):
    step = build_step(tmp_path, [named_batch("a")] * 4, "retinanet_tiny", "brs", *EMA)
    step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    overflow = step.model.head.bbox_pred.bias.register_hook(lambda grad: grad * torch.inf)
    train(step, 2)
    assert (step.skipped, step.average.updates) == (0, 0)
    overflow.remove()
    train(step, 1)
    assert step.average.updates == 1
    assert_equal(step.average.module.state_dict(), step.model.state_dict())


@pytest.mark.usefixtures("blobs")
def test_a_run_of_averaged_weights(tmp_path, monkeypatch, capsys):
    """Whole, killed and resumed, and beside one without; what is evaluated, kept and loaded."""
    options = ("TEST.EVAL_PERIOD", "3", "DATALOADER.NUM_WORKERS", "0")

    def checkpoint(run: str, name: str = "final"):
        return torch.load(tmp_path / run / f"model_{name}.pth", weights_only=True)

    runs.train(run_config(tmp_path / "plain", *options))
    assert "averaged" not in capsys.readouterr().out
    results = runs.train(run_config(tmp_path / "whole", *options, *EMA))
    assert re.search(r"after 3 iterations, averaged weights: AP \d", capsys.readouterr().out)

    step = Trainer.run_step

    def killed(self):
        if self.iter == 4:
            raise RuntimeError("power cut")
        step(self)

    monkeypatch.setattr(Trainer, "run_step", killed)
    with pytest.raises(RuntimeError, match="power cut"):
        runs.train(run_config(tmp_path / "cut", *options, *EMA))
    monkeypatch.undo()
    # Not without, which would go on with the average.
    with pytest.raises(BucketRankError, match=r"started with SOLVER\.EMA_DECAY 0\.9999, not 0\.0"):
        runs.train(run_config(tmp_path / "cut", *options), resume=True)
    runs.train(run_config(tmp_path / "cut", *options, *EMA), resume=True)

    plain, whole, cut = (checkpoint(name) for name in ("plain", "whole", "cut"))
    trained = whole["trainer"]["_trainer"].pop("average")
    assert trained["updates"] == 6
    assert "average" not in plain["trainer"]["_trainer"]
    assert_equal(trained["trained_weights"], plain["model"])
    resumed = cut["trainer"]["_trainer"].pop("average")
    assert resumed["updates"] == 6
    assert_equal(resumed["trained_weights"], plain["model"])
    assert_equal(cut["model"], whole["model"])
    best, best_of_cut = (checkpoint(name, "best") for name in ("whole", "cut"))
    assert_equal(best_of_cut["model"], best["model"])
    rows, rows_of_cut = (
        [row["bbox/AP"] for row in run_folder.read_metrics(tmp_path / run) if "bbox/AP" in row]
        for run in ("whole", "cut")
    )
    assert rows_of_cut == rows

    # What is loaded is what was evaluated, with its calibration where there is one.
    detector = inference.load_detector(str(tmp_path / "whole"), weights="last", device="cpu")
    assert_equal(detector.model.state_dict(), whole["model"])
    assert detector.describe_weights().endswith("model_final.pth (after 6 iterations, averaged)")
    inference.evaluate(detector, "blobs_val", tmp_path / "evaluated")
    found = run_folder.read_json(tmp_path / "evaluated" / run_folder.RESULTS)
    assert found["bbox"] == results["bbox"]
    assert found["calibration"] == results["calibration"]
    # And what another training starts from.
    weights = ("MODEL.WEIGHTS", str(tmp_path / "whole" / "model_final.pth"))
    for options in (weights, (*weights, *EMA)):
        trainer = Trainer(run_config(tmp_path / "next", *options))
        trainer.resume_or_load(resume=False)
        assert_equal(trainer.model.state_dict(), whole["model"])


@pytest.mark.usefixtures("blobs")
def test_an_average_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    step = Trainer.run_step

    def overflows(self):
        step(self)
        if self.iter == 3:
            with torch.no_grad():
                self.model.head.cls_score.bias.fill_(torch.inf)

    monkeypatch.setattr(Trainer, "run_step", overflows)
    with pytest.raises(BucketRankError, match="diverged at iteration 4"):
        runs.train(run_config(tmp_path, *EMA))
    assert [path.stem for path in tmp_path.glob("model_*.pth")] == ["model_0000002"]


@pytest.mark.usefixtures("blobs")
def test_precise_statistics_of_other_weights_are_refused(tmp_path):
    with pytest.raises(BucketRankError, match=r"PRECISE_BN .*EMA_DECAY"):
        runs.train(run_config(tmp_path / "run", *EMA, "TEST.PRECISE_BN.ENABLED", "True"))
    assert not (tmp_path / "run").exists()
