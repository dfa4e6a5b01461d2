"""RankingCriterion: qualities, the weighted box loss, self-balance, and its edges."""

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torchvision.ops import box_convert, generalized_box_iou_loss

from bucketed_ranking.criterion import (
    BOX_MARK,
    CLASSIFICATION_MARK,
    RankingCriterion,
    aligned_box_iou,
    dice_losses,
    giou_losses,
    positive_rows,
    self_balanced,
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
    losses, _, _, qualities, _ = RankingCriterion(RankingLoss(name))(**head)
    torch.testing.assert_close(qualities, aligned_box_iou(head["pred_boxes"].detach(), TARGETS))
    expected = RankingLoss(name)(head["logits"], dense_targets(head, qualities))
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value)
    assert set(losses) == {*expected, "loss_box_reg"}


def test_self_balance_gives_the_box_loss_the_value_of_the_classification_loss():
    head = one_head()
    losses = RankingCriterion(RankingLoss("brs"))(**head).losses
    torch.testing.assert_close(
        losses["loss_box_reg"], losses["loss_rank"] + losses["loss_sort"], check_stride=False
    )
    gradient = torch.autograd.grad(losses["loss_box_reg"], head["logits"], allow_unused=True)[0]
    assert gradient is None or not gradient.any(), "the balance must be a constant to autograd"


@pytest.mark.parametrize("self_balance", [True, False])
def test_boxes_out_of_the_box_loss_are_ranked_but_get_no_gradient(self_balance):
    head, chosen = one_head(), torch.tensor([True, False, True])
    criterion = RankingCriterion(RankingLoss("brs"), box_weight=1.0, self_balance=self_balance)
    losses, classification, scores, _, statistics = criterion(**head, in_box_loss=chosen)
    each = generalized_box_iou_loss(head["pred_boxes"], TARGETS)[chosen]
    expected = (scores[chosen] * each).sum() / scores[chosen].sum()
    torch.testing.assert_close(statistics["box_error"], expected.detach())
    expected = classification if self_balance else expected
    torch.testing.assert_close(losses["loss_box_reg"], expected, check_stride=False)
    assert statistics["num_positives"] == 3
    gradient = torch.autograd.grad(losses["loss_box_reg"], head["pred_boxes"])[0]
    assert gradient.any(dim=1).tolist() == chosen.tolist()
    without = criterion(**head).losses
    torch.testing.assert_close(losses["loss_rank"], without["loss_rank"])
    torch.testing.assert_close(losses["loss_sort"], without["loss_sort"])


def test_box_loss_of_ap_is_twice_the_score_weighted_giou_by_default():
    head = one_head()
    criterion = RankingCriterion(RankingLoss("bap"))
    scores = head["logits"].detach()[head["positives"]].sigmoid().amax(dim=1)
    errors = 1 - generalized_iou(head["pred_boxes"], TARGETS)
    expected = 2 * (scores * errors).sum() / scores.sum()
    torch.testing.assert_close(criterion(**head).losses["loss_box_reg"], expected)


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


@pytest.mark.parametrize("name", ["brs", "rs-exact", "bap", "alrp"])
def test_another_loss_of_the_positives_can_be_balanced_by_the_result(name):
    head = one_head()
    result = RankingCriterion(RankingLoss(name), weight=0.2)(**head)
    mask_loss = torch.tensor(0.3, requires_grad=True)
    balanced = self_balanced(mask_loss, result.classification)
    balanced.backward()
    classification = (result.losses["loss_rank"] + result.losses.get("loss_sort", 0)) / 0.2
    torch.testing.assert_close(result.classification, classification.detach(), check_stride=False)
    torch.testing.assert_close(balanced.detach(), result.classification)
    expected = float(result.classification / 0.3)
    assert mask_loss.grad == pytest.approx(expected), "the balance is a constant"
    scores = head["logits"].detach()[head["positives"]].sigmoid().amax(dim=1)
    torch.testing.assert_close(result.scores, scores)


def test_a_call_leaves_nothing_behind():
    criterion = RankingCriterion(RankingLoss("brs"))
    before = dict(vars(criterion))
    first = criterion(**one_head(0)).losses
    criterion(**one_head(1))
    assert vars(criterion) == before
    assert not list(criterion.buffers())
    torch.testing.assert_close(criterion(**one_head(0)).losses, first, rtol=0, atol=0)


def detr_layer(**options):
    """A layer of a DETR with two images of 20 queries, whose boxes are cx, cy, w, h in 0..1: the
    result, the predicted boxes, and its two box losses before anything is done to them."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 20, NUM_CLASSES, generator=generator).requires_grad_()
    boxes = (0.2 + 0.4 * torch.rand(2, 20, 4, generator=generator)).requires_grad_()
    labels = torch.full((2, 20), NUM_CLASSES)
    labels[0, 4], labels[0, 9], labels[1, 2] = 1, 0, 2
    targets = 0.2 + 0.4 * torch.rand(3, 4, generator=generator)
    labels, logits = labels.flatten(), logits.flatten(0, 1)
    positives = positive_rows(labels, NUM_CLASSES)
    matched = boxes.flatten(0, 1)[positives]
    corners, target_corners = (box_convert(b, "cxcywh", "xyxy") for b in (matched, targets))
    box_losses = {
        "loss_bbox": (matched - targets).abs().sum() / len(targets),
        "loss_giou": generalized_box_iou_loss(corners, target_corners, reduction="mean"),
    }
    criterion = RankingCriterion(RankingLoss("rs-exact"), **options)
    result = criterion(logits, labels, positives, corners, target_corners, box_losses)
    return result, boxes, box_losses


def test_the_layers_of_a_detr_bring_l1_and_giou_each_balanced_alone():
    result, boxes, given = detr_layer(rank_weight=2.0)
    plain, _, _ = detr_layer()
    assert list(result.losses) == ["loss_rank", "loss_sort", "loss_bbox", "loss_giou"]
    for name in ("loss_rank", "loss_sort"):
        torch.testing.assert_close(result.losses[name], 2 * plain.losses[name])
    total = result.losses["loss_rank"] + result.losses["loss_sort"]
    for name, loss in given.items():
        torch.testing.assert_close(result.losses[name], total, check_stride=False)
        torch.testing.assert_close(result.statistics[name], loss.detach())
        found, own = (torch.autograd.grad(x, boxes, retain_graph=True)[0]
                      for x in (result.losses[name], loss))  # fmt: skip
        torch.testing.assert_close(found, own * (total / loss).detach())


def test_each_box_loss_has_its_own_weight():
    result, _, given = detr_layer(
        self_balance=False, box_weight={"loss_bbox": 5.0, "loss_giou": 2.0}, weight=0.5
    )
    torch.testing.assert_close(result.losses["loss_bbox"], 2.5 * given["loss_bbox"])
    torch.testing.assert_close(result.losses["loss_giou"], given["loss_giou"])


@pytest.mark.parametrize("losses", [{}, {"a": torch.ones(3), "b": torch.ones(3)}])
def test_alrp_takes_one_box_loss(losses):
    with pytest.raises(ValueError, match="aLRP loss needs box_losses"):
        RankingCriterion(RankingLoss("alrp"))(**one_head(), box_losses=losses)


def test_a_profiler_finds_the_two_parts():
    with profile(activities=[ProfilerActivity.CPU]) as found:
        sum(RankingCriterion(RankingLoss("brs"))(**one_head()).losses.values()).backward()
    names = {event.key for event in found.key_averages()}
    assert {CLASSIFICATION_MARK, BOX_MARK, "_RankingFunctionBackward"} <= names


def test_options_override_the_habits_of_the_objective():
    criterion = RankingCriterion(RankingLoss("bap"), self_balance=True, box_weight=3.0)
    losses = criterion(**one_head()).losses
    torch.testing.assert_close(losses["loss_box_reg"], 3 * losses["loss_rank"])


def test_weight_scales_every_loss():
    plain = RankingCriterion(RankingLoss("brs"))(**one_head()).losses
    scaled = RankingCriterion(RankingLoss("brs"), weight=0.2)(**one_head()).losses
    for key, value in plain.items():
        torch.testing.assert_close(scaled[key], 0.2 * value)


def test_a_positive_whose_box_misses_its_target_stays_a_positive():
    head = one_head()
    with torch.no_grad():
        head["pred_boxes"][1] += 500
    result = RankingCriterion(RankingLoss("brs"))(**head)
    result.losses["loss_rank"].backward()
    index = head["positives"][1], head["labels"][head["positives"][1]]
    assert head["logits"].grad[index] < 0, "its score is still pushed up"
    assert result.statistics["num_positives"] == 3
    assert 0 < result.qualities[1] < 1e-3


@pytest.mark.parametrize("name", ["ap", "bap", "alrp", "rs", "brs", "alrp-exact", "rs-exact"])
def test_without_positives_losses_are_zero_and_the_graph_connected(name):
    logits = torch.randn(20, NUM_CLASSES, requires_grad=True)
    boxes = torch.zeros(0, 4, requires_grad=True)
    labels = torch.full((20,), NUM_CLASSES)
    result = RankingCriterion(RankingLoss(name))(
        logits, labels, positive_rows(labels, NUM_CLASSES), boxes, torch.zeros(0, 4)
    )
    total = sum(result.losses.values())
    assert total == 0
    total.backward()
    assert not logits.grad.any()


def test_ignored_anchors_get_no_gradient():
    head = one_head()
    RankingCriterion(RankingLoss("brs"))(**head).losses["loss_rank"].backward()
    assert not head["logits"].grad[7].any()
    assert head["logits"].grad[8].any()


def test_nan_is_never_hidden():
    head = one_head()
    with torch.no_grad():
        head["logits"][0, 0] = float("nan")
    assert sum(RankingCriterion(RankingLoss("brs"))(**head).losses.values()).isnan()


@pytest.mark.parametrize("name", ["alrp", "alrp-exact"])
def test_alrp_takes_its_localisation_part_for_the_box_loss(name):
    head = one_head()
    losses = RankingCriterion(RankingLoss(name))(**head).losses
    errors = 1 - generalized_iou(head["pred_boxes"], TARGETS)
    targets = dense_targets(head, torch.ones(3))
    expected = RankingLoss("alrp")(head["logits"], targets, errors)
    assert set(losses) == {"loss_rank", "loss_box_reg"}
    torch.testing.assert_close(losses["loss_box_reg"], expected["loss_loc"])
    gradients = [torch.autograd.grad(each["loss_rank"], head["logits"])[0]
                 for each in (losses, expected)]  # fmt: skip
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_the_losses_of_their_upcast(dtype):
    head = one_head()
    half = head["logits"].detach().to(dtype)
    criterion = RankingCriterion(RankingLoss("brs"))
    losses = criterion(**{**head, "logits": half}).losses
    expected = criterion(**{**head, "logits": half.float()}).losses
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value)


def test_statistics_are_detached_scalars():
    result = RankingCriterion(RankingLoss("brs"), rank_weight=2.0)(**one_head())
    assert set(result.statistics) == {
        "num_positives", "mean_quality", "box_error", "ranking_error", "sorting_error"
    }  # fmt: skip
    assert all(v.ndim == 0 and not v.requires_grad for v in result.statistics.values())
    assert 2 * result.statistics["ranking_error"] == result.losses["loss_rank"]


def test_wrong_shapes_are_told():
    head = one_head()
    with pytest.raises(ValueError, match=r"logits must be \[A, C\] and labels \[A\]"):
        RankingCriterion(RankingLoss("brs"))(**{**head, "labels": head["labels"][:-1]})


@pytest.mark.parametrize("shape", [(0,), (200,), (3, 7)])
def test_giou_losses_are_those_of_torchvision(shape):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, *shape, 4, generator=generator, dtype=torch.float64)
    boxes, targets = box_convert(corners, "cxcywh", "xyxy").unbind()
    boxes = boxes.requires_grad_()
    pairs = []
    for loss in (giou_losses, generalized_box_iou_loss):
        each = loss(boxes, targets)
        weights = torch.arange(each.numel(), dtype=each.dtype).view(each.shape)
        pairs.append((each, *torch.autograd.grad((weights * each).sum(), boxes)))
    for found, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_boxes_in_half_precision_overlap_as_in_float32(dtype):
    boxes, targets = (torch.tensor([[0, 0, a, a]], dtype=dtype) for a in (300, 320))
    torch.testing.assert_close(giou_losses(boxes, targets), 1 - aligned_box_iou(boxes, targets))
    torch.testing.assert_close(
        giou_losses(boxes, targets), giou_losses(boxes.float(), targets.float())
    )
