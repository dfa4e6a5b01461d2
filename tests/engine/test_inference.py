"""What prediction needs beside the model: thresholds and picture files."""

import json

import pytest
import torch

from bucketed_ranking.engine import inference
from bucketed_ranking.engine.checkpoint import chosen_checkpoint
from bucketed_ranking.engine.setup import load_config
from bucketed_ranking.errors import BucketRankError


@pytest.fixture
def evaluated_run(tmp_path):
    """The folder of a run of 8 iterations, evaluated three times, with the best in the middle."""
    rows = [
        {"iteration": 1, "bbox/AP": 30.0, "bbox/score_threshold": 0.3},
        {"iteration": 3, "bbox/AP": 50.0, "bbox/score_threshold": 0.5},
        {"iteration": 5, "total_loss": 1.0},
        {"iteration": 8, "bbox/AP": 40.0, "bbox/score_threshold": 0.4},
    ]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weights = {"a": torch.zeros(1)}
    for name, iteration in (("model_best", 3), ("model_0000005", 5), ("model_final", 7)):
        torch.save({"model": weights, "iteration": iteration}, tmp_path / f"{name}.pth")
    return tmp_path


def test_the_best_checkpoint_is_used_unless_told_otherwise(evaluated_run):
    for which, name, iterations in (
        (None, "model_best", 4), ("best", "model_best", 4), ("last", "model_final", 8),
    ):  # fmt: skip
        chosen = chosen_checkpoint(evaluated_run, which)
        assert (chosen.path.stem, chosen.iterations) == (name, iterations)
    (evaluated_run / "model_best.pth").write_bytes(b"cut off")
    with pytest.raises(BucketRankError, match=r"model_best\.pth is damaged.*--weights last"):
        chosen_checkpoint(evaluated_run)
    (evaluated_run / "model_best.pth").unlink()
    assert chosen_checkpoint(evaluated_run).path.stem == "model_final"
    with pytest.raises(BucketRankError, match=r"no model_best\.pth"):
        chosen_checkpoint(evaluated_run, "best")


def test_pictures_are_drawn_above_the_best_threshold_of_their_own_weights(evaluated_run):
    cfg = load_config("retinanet_tiny", options=["SOLVER.MAX_ITER", "8"], device="cpu")

    def threshold(run_dir, iterations):
        return inference.best_threshold(
            inference.TrainedDetector(cfg, None, "", run_dir, iterations)
        )

    assert threshold(None, None) == inference.DEFAULT_SCORE_THRESHOLD
    assert threshold(evaluated_run, 2) == 0.3
    assert threshold(evaluated_run, 4) == 0.5
    assert threshold(evaluated_run, 6) == 0.4  # not evaluated: that of the last evaluation
    assert threshold(evaluated_run, 8) == 0.4
    assert threshold(evaluated_run, None) == 0.4
    row = {"iteration": 8, "segm/AP": 1.0, "segm/score_threshold": 0.6}  # Cityscapes has no boxes
    (evaluated_run / "metrics.json").write_text(json.dumps(row))
    assert threshold(evaluated_run, 8) == 0.6
    (evaluated_run / "metrics.json").write_text(json.dumps({**row, "segm/score_threshold": None}))
    assert threshold(evaluated_run, 8) == inference.DEFAULT_SCORE_THRESHOLD


def test_a_run_without_a_checkpoint_is_told(tmp_path):
    (tmp_path / "config.yaml").write_text(load_config("retinanet_tiny", device="cpu").dump())
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(BucketRankError, match="has no checkpoint yet"):
        inference.load_detector(str(tmp_path))
