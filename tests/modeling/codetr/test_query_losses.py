"""Losses of queries by hand, and that every group ranks on its own."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage

from bucketed_ranking.criterion import RankingCriterion
from bucketed_ranking.losses import RankingLoss
from bucketed_ranking.modeling.codetr import query_losses
from bucketed_ranking.modeling.codetr.assignment import Assigned
from bucketed_ranking.modeling.codetr.query_head import Predictions
from bucketed_ranking.modeling.codetr.query_losses import RankingQueryLosses, ScoreQueryLosses

# Two queries have objects: one finds it, the other is 0.1 off of a 0.2 x 0.2 box, IoU 1/3.
FOUND, OFF, TARGET = [0.5, 0.5, 0.2, 0.2], [0.3, 0.5, 0.2, 0.2], [0.4, 0.5, 0.2, 0.2]
WEIGHTS = {"loss_cls": 2.0, "loss_bbox": 5.0, "loss_giou": 3.0}


def given(layers=1, logits=None):
    boxes = torch.tensor([[FOUND, OFF, TARGET, TARGET]]).expand(layers, 1, 4, 4).clone()
    logits = torch.zeros(layers, 1, 4, 3) if logits is None else logits
    labels = torch.tensor([[1, 0, 3, -1]]).expand(layers, 4)
    positives = torch.tensor([[0, 1]]).expand(layers, 2)
    targets = torch.tensor([[FOUND, TARGET]]).expand(layers, 2, 4)
    predictions = Predictions(logits.requires_grad_(), boxes.requires_grad_())
    return predictions, Assigned(labels, positives, targets)


def values(losses):
    return {name: value.item() for name, value in losses.items()}


@pytest.mark.parametrize("processes", [1, 2])
def test_score_based_losses_by_hand(processes, monkeypatch):
    """Two layers, so twice that of one; processes with the same queries change nothing."""
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: processes)
    monkeypatch.setattr(query_losses, "differentiable_all_reduce", lambda v: v * processes)
    found = values(ScoreQueryLosses(WEIGHTS)("decoder", *given(layers=2)))
    # Nine cells at probability 1/2, without the ignored row, two of them positive.
    focal = 0.5**2 * math.log(2) * (0.25 * 2 + 0.75 * 7)
    expected = {"cls": 2 * focal / 2, "bbox": 5 * 0.1 / 2, "giou": 3 * (1 - 1 / 3) / 2}
    assert found == pytest.approx({f"loss_decoder_{k}": 2 * v for k, v in expected.items()})


@pytest.mark.parametrize("name", ["rs", "brs", "rs-exact", "ap", "bap"])
def test_ranking_losses_are_those_of_the_criterion_layer_by_layer(name):
    torch.manual_seed(0)
    criterion = RankingCriterion(RankingLoss(name), rank_weight=2.0, box_weight=1.0)
    logits = torch.randn(2, 1, 4, 3)
    predictions, assigned = given(2, logits)
    with EventStorage():
        found = values(RankingQueryLosses(criterion, "process", {})("x", predictions, assigned))
    expected = dict.fromkeys(found, 0.0)
    for layer in range(2):
        errors = criterion.loss.forward_indexed(
            logits[layer, 0],
            torch.tensor([1, 3]),
            torch.tensor([1.0, 1 / 3]),
            ignored_rows=torch.tensor([False, False, False, True]),
        )
        for key, value in errors.items():
            expected[key.replace("_", "_x_", 1)] += 2 * value.item()
        total = sum(2 * value.item() for value in errors.values())
        balanced = criterion.self_balance
        expected["loss_x_bbox"] += total if balanced else 0.1 / 2
        expected["loss_x_giou"] += total if balanced else (2 / 3) / 2
    assert found == pytest.approx(expected, rel=1e-4)


def test_box_losses_without_self_balance_have_their_own_weights():
    weights = {"loss_bbox": 5.0, "loss_giou": 2.0}
    criterion = RankingCriterion(RankingLoss("bap"), rank_weight=2.0, box_weight=weights)
    with EventStorage():
        found = values(RankingQueryLosses(criterion, "process", {})("x", *given()))
    assert found["loss_x_bbox"] == pytest.approx(5 * 0.1 / 2)
    assert found["loss_x_giou"] == pytest.approx(2 * (2 / 3) / 2, rel=1e-4)


@pytest.mark.parametrize("self_balance", [True, False])
def test_alrp_ranks_the_giou_loss_and_each_layer_has_an_average(self_balance):
    weights = {"loss_bbox": 5.0, "loss_giou": 2.0, "loss_box_reg": 2.0}
    criterion = RankingCriterion(
        RankingLoss("alrp"),
        rank_weight=2.0,
        self_balance=self_balance,
        box_weight=None if self_balance else weights,
    )
    losses = RankingQueryLosses(criterion, "process", {"x": 2, "y": 1})
    assert [len(each) for each in losses.balance.values()] == ([2, 1] if self_balance else [])
    with EventStorage():
        found = values(losses("x", *given(layers=2)))
    assert set(found) == {"loss_x_rank", "loss_x_bbox", "loss_x_giou"}
    expected = found["loss_x_rank"] if self_balance else 2 * 5 * 0.1 / 2
    assert found["loss_x_bbox"] == pytest.approx(expected)
    if self_balance:
        counts = [[int(b.iterations) for b in group] for group in losses.balance.values()]
        assert counts == [[1, 1], [0]]


@pytest.mark.parametrize("name", ["score", "brs", "ap", "alrp-exact"])
def test_without_objects_losses_are_finite_and_connected(name):
    predictions = Predictions(
        torch.zeros(2, 1, 4, 3, requires_grad=True), torch.rand(2, 1, 4, 4, requires_grad=True)
    )
    assigned = Assigned(
        torch.full((2, 4), 3), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, 4)
    )
    if name == "score":
        losses = ScoreQueryLosses(WEIGHTS)
    else:
        losses = RankingQueryLosses(RankingCriterion(RankingLoss(name)), "process", {"x": 2})
    with EventStorage():
        found = losses("x", predictions, assigned)
    sum(found.values()).backward()
    assert all(value.isfinite() for value in found.values())
    assert predictions.boxes.grad is not None
    assert not predictions.boxes.grad.any()
    assert bool(predictions.logits.grad.any()) == (name == "score")


def test_small_boxes_are_not_lost_in_an_epsilon():
    """An object of 2 x 2 pixels of 1333: half of it found."""
    side = 2 / 1333
    targets = torch.tensor([[[0.5, 0.5, side, side]]])
    boxes = torch.tensor([[[[0.5, 0.5, side, side / 2]]]])
    predictions = Predictions(torch.zeros(1, 1, 1, 1), boxes)
    assigned = Assigned(torch.tensor([[0]]), torch.tensor([[0]]), targets)
    found = ScoreQueryLosses(WEIGHTS)("x", predictions, assigned)
    assert found["loss_x_giou"].item() == pytest.approx(3 * 0.5, rel=1e-3)
