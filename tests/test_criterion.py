"""RankingCriterion: qualities, the weighted box loss, self-balance, and its edges."""

import pytest
import torch
from torch import Tensor

from bucketed_ranking.criterion import (
    RankingCriterion,
    aligned_box_iou,
    dice_losses,
    positive_rows,
)
from bucketed_ranking.losses import RankingLoss

NUM_CLASSES = 3
TARGETS = torch.tensor(
    [[10.0, 10.0, 30.0, 30.0], [40.0, 10.0, 60.0, 50.0], [5.0, 60.0, 25.0, 80.0]]
)


def one_head(seed: int = 0, num_anchors: int = 40) -> dict[str, Tensor]:
    """Logits, labels and boxes of a head with three positives, one ignored anchor."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full((num_anchors,), NUM_CLASSES)
    labels[torch.tensor([3, 11, 30])] = torch.tensor([0, 2, 1])
    labels[7] = -1
    return {
        "logits": torch.randn(num_anchors, NUM_CLASSES, generator=generator).requires_grad_(),
        "labels": labels,
        "positives": positive_rows(labels, NUM_CLASSES),
        "pred_boxes": (TARGETS + torch.randn(3, 4, generator=generator)).requires_grad_(),
        "target_boxes": TARGETS,
    }


def dense_targets(head: dict[str, Tensor], qualities: Tensor) -> Tensor:
    targets = torch.zeros_like(head["logits"])
    targets[head["positives"], head["labels"][head["positives"]]] = qualities
    targets[head["labels"] < 0] = -1
    return targets


def test_positive_rows_leaves_out_background_and_ignored():
    assert positive_rows(torch.tensor([3, 0, -1, 2, 3]), NUM_CLASSES).tolist() == [1, 3]


def test_iou_of_boxes_worked_out_by_hand():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    targets = torch.tensor([[1.0, 0.0, 3.0, 2.0], [0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
    assert aligned_box_iou(boxes, targets).tolist() == pytest.approx([1 / 3, 1.0, 0.0])


@pytest.mark.parametrize("name", ["ap", "bap", "rs", "brs"])
def test_classification_is_the_ranking_loss_with_iou_as_quality(name):
    head = one_head()
    losses = RankingCriterion(RankingLoss(name))(**head)
    qualities = aligned_box_iou(head["pred_boxes"].detach(), TARGETS)
    expected = RankingLoss(name)(head["logits"], dense_targets(head, qualities))
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value)
    assert set(losses) == {*expected, "loss_box_reg"}


def test_self_balance_gives_the_box_loss_the_value_of_the_classification_loss():
    head = one_head()
    losses = RankingCriterion(RankingLoss("brs"))(**head)
    torch.testing.assert_close(
        losses["loss_box_reg"], losses["loss_rank"] + losses["loss_sort"], check_stride=False
    )
    gradient = torch.autograd.grad(losses["loss_box_reg"], head["logits"], allow_unused=True)[0]
    assert gradient is None or not gradient.any(), "the balance must be a constant to autograd"


def test_box_loss_of_ap_is_twice_the_score_weighted_giou_by_default():
    head = one_head()
    criterion = RankingCriterion(RankingLoss("bap"))
    scores = head["logits"].detach()[head["positives"]].sigmoid().amax(dim=1)
    errors = 1 - generalized_iou(head["pred_boxes"], TARGETS)
    expected = 2 * (scores * errors).sum() / scores.sum()
    torch.testing.assert_close(criterion(**head)["loss_box_reg"], expected)


def generalized_iou(boxes: Tensor, targets: Tensor) -> Tensor:
    """GIoU by its definition (Rezatofighi et al., CVPR 2019)."""
    iou = aligned_box_iou(boxes, targets)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (targets[:, 2:] - targets[:, :2]).prod(1)
    union = areas / (1 + iou)
    hull = torch.maximum(boxes[:, 2:], targets[:, 2:]) - torch.minimum(boxes[:, :2], targets[:, :2])
    return iou - (hull.prod(1) - union) / hull.prod(1)


def test_dice_loss_worked_out_by_hand():
    sure = 40.0
    logits = torch.tensor(
        [[[sure, 0.0], [-sure, -sure]], [[sure, sure], [-sure, -sure]], [[-sure, -sure], [0, sure]]]
    )
    # 1 - 2 (1 + 1/2) / (1 + 1/4 + 2); all of it; none of it.
    losses = dice_losses(logits, torch.tensor([[[1, 1], [0, 0]]]).expand(3, 2, 2))
    assert losses.tolist() == pytest.approx([1 - 3 / 3.25, 0.0, 1.0])
    nothing = dice_losses(torch.full((1, 2, 2), -200.0), torch.zeros(1, 2, 2))
    assert nothing.tolist() == [1.0], "and no division by zero"


@pytest.mark.parametrize(("name", "balances"), [("brs", True), ("rs-exact", True), ("bap", False)])
def test_another_loss_of_the_positives_is_balanced_like_the_box_loss(name, balances):
    head = one_head()
    criterion = RankingCriterion(RankingLoss(name))
    losses = criterion(**head)
    mask_loss = torch.tensor(0.3, requires_grad=True)
    balanced = criterion.balanced(mask_loss)
    balanced.backward()
    classification = losses["loss_rank"] + losses.get("loss_sort", 0)
    expected = classification.detach() if balances else torch.tensor(0.3)
    torch.testing.assert_close(balanced.detach(), expected, check_stride=False)
    assert mask_loss.grad == pytest.approx(float(expected / 0.3)), "the balance is a constant"
    scores = head["logits"].detach()[head["positives"]].sigmoid().amax(dim=1)
    torch.testing.assert_close(criterion.positive_scores, scores)


def test_options_override_the_habits_of_the_objective():
    criterion = RankingCriterion(RankingLoss("bap"), self_balance=True, box_weight=3.0)
    losses = criterion(**one_head())
    torch.testing.assert_close(losses["loss_box_reg"], 3 * losses["loss_rank"])


def test_weight_scales_every_loss():
    plain = RankingCriterion(RankingLoss("brs"))(**one_head())
    scaled = RankingCriterion(RankingLoss("brs"), weight=0.2)(**one_head())
    for key, value in plain.items():
        torch.testing.assert_close(scaled[key], 0.2 * value)


def test_a_positive_whose_box_misses_its_target_stays_a_positive():
    head = one_head()
    with torch.no_grad():
        head["pred_boxes"][1] += 500
    criterion = RankingCriterion(RankingLoss("brs"))
    losses = criterion(**head)
    losses["loss_rank"].backward()
    index = head["positives"][1], head["labels"][head["positives"][1]]
    assert head["logits"].grad[index] < 0, "its score is still pushed up"
    assert criterion.statistics["num_positives"] == 3


@pytest.mark.parametrize("name", ["ap", "bap", "alrp", "rs", "brs", "alrp-exact", "rs-exact"])
def test_without_positives_losses_are_zero_and_the_graph_connected(name):
    logits = torch.randn(20, NUM_CLASSES, requires_grad=True)
    boxes = torch.zeros(0, 4, requires_grad=True)
    labels = torch.full((20,), NUM_CLASSES)
    losses = RankingCriterion(RankingLoss(name))(
        logits, labels, positive_rows(labels, NUM_CLASSES), boxes, torch.zeros(0, 4)
    )
    total = sum(losses.values())
    assert total == 0
    total.backward()
    assert not logits.grad.any()


def test_ignored_anchors_get_no_gradient():
    head = one_head()
    RankingCriterion(RankingLoss("brs"))(**head)["loss_rank"].backward()
    assert not head["logits"].grad[7].any()
    assert head["logits"].grad[8].any()


def test_nan_is_never_hidden():
    head = one_head()
    with torch.no_grad():
        head["logits"][0, 0] = float("nan")
    assert sum(RankingCriterion(RankingLoss("brs"))(**head).values()).isnan()


@pytest.mark.parametrize("name", ["alrp", "alrp-exact"])
def test_alrp_takes_its_localisation_part_for_the_box_loss(name):
    head = one_head()
    losses = RankingCriterion(RankingLoss(name), self_balance=False, box_weight=1.0)(**head)
    errors = (1 - generalized_iou(head["pred_boxes"], TARGETS)) / 2
    targets = dense_targets(head, torch.ones(3))
    expected = RankingLoss("alrp")(head["logits"], targets, errors)
    assert set(losses) == {"loss_rank", "loss_box_reg"}
    torch.testing.assert_close(losses["loss_box_reg"], expected["loss_loc"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_the_losses_of_their_upcast(dtype):
    head = one_head()
    half = head["logits"].detach().to(dtype)
    criterion = RankingCriterion(RankingLoss("brs"))
    losses = criterion(**{**head, "logits": half})
    expected = criterion(**{**head, "logits": half.float()})
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value)


def test_statistics_are_detached_scalars():
    criterion = RankingCriterion(RankingLoss("brs"))
    losses = criterion(**one_head())
    assert set(criterion.statistics) == {
        "num_positives", "mean_quality", "box_error", "ranking_error", "sorting_error"
    }  # fmt: skip
    assert all(v.ndim == 0 and not v.requires_grad for v in criterion.statistics.values())
    assert criterion.statistics["ranking_error"] == losses["loss_rank"]


def test_wrong_shapes_are_told():
    head = one_head()
    with pytest.raises(ValueError, match=r"logits must be \[A, C\] and labels \[A\]"):
        RankingCriterion(RankingLoss("brs"))(**{**head, "labels": head["labels"][:-1]})
