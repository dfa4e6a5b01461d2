"""The one place where a detection head meets a ranking loss. It keeps nothing of a call."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torchvision.ops import box_area, generalized_box_iou_loss

from .losses import RankingLoss

# A positive whose predicted box misses its target keeps this quality: it stays a positive.
_MIN_QUALITY = 1e-6
_MIN_DENOMINATOR = 1e-6

CLASSIFICATION_MARK = "bucketrank.classification_loss"
BOX_MARK = "bucketrank.box_loss"
"""Names under which ``torch.profiler`` finds the ranking and the GIoU loss of a call, forward. The
ranking's backward pass is the event "_RankingFunctionBackward". A head marks losses that it brings.
"""

BOX_LOSS = "loss_box_reg"
"""Name of the box loss of dense and RoI heads, as Detectron2 calls it."""

_STATISTICS = {"loss_rank": "ranking_error", "loss_sort": "sorting_error", BOX_LOSS: "box_error"}


def positive_rows(labels: Tensor, num_classes: int) -> Tensor:
    """Indices of the anchors or proposals that are assigned to an object: [P] int64, ascending.

    ``labels`` are [A], class index in 0..C-1, C = ``num_classes`` for background, -1 for ignored.
    P decides the shapes of everything that follows, so this is the one point of a head's loss at
    which an accelerator has to wait for the host.
    """
    return torch.nonzero((labels >= 0) & (labels < num_classes)).squeeze(1)


def aligned_box_iou(boxes: Tensor, targets: Tensor) -> Tensor:
    """IoU of each box with the target of the same row; both [P, 4] as x1, y1, x2, y2 -> [P]."""
    top_left = torch.maximum(boxes[:, :2], targets[:, :2])
    bottom_right = torch.minimum(boxes[:, 2:], targets[:, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=1)
    areas = box_area(boxes) + box_area(targets)
    return intersection / (areas - intersection).clamp(min=_MIN_DENOMINATOR)


def dice_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of each mask: 1 - 2 sum(p t) / (sum(p^2) + sum(t^2)), p = sigmoid(logits).

    V-Net (Milletari et al., 3DV 2016), equation 3, which RS Loss takes for masks. Logits and
    targets, 1 on the object and 0 elsewhere, bool or a number, are [M, H, W]; the losses [M] float.
    """
    probabilities, targets = logits.float().sigmoid().flatten(1), targets.float().flatten(1)
    overlaps = 2 * (probabilities * targets).sum(dim=1)
    sums = probabilities.square().sum(dim=1) + targets.square().sum(dim=1)
    return 1 - overlaps / sums.clamp(min=_MIN_DENOMINATOR)


def score_weighted_mean(losses: Tensor, scores: Tensor) -> Tensor:
    """Mean of the positives' losses, weighted by their scores; both [P] -> scalar, 0 for P = 0."""
    return (scores * losses).sum() / scores.sum().clamp(min=_MIN_DENOMINATOR)


def self_balanced(loss: Tensor, classification: Tensor) -> Tensor:
    """The scalar box or mask loss of positives, scaled to the value of their classification loss,
    ``RankingResult.classification`` of the head that scored them."""
    return loss * classification / loss.detach().clamp(min=_MIN_DENOMINATOR)


class RankingResult(NamedTuple):
    """What one call of :class:`RankingCriterion` gives."""

    losses: dict[str, Tensor]
    """Scalars: "loss_rank", for RS "loss_sort", and the box losses by their names."""
    classification: Tensor
    """Scalar, detached: the sum of the classification losses, which others are balanced by."""
    scores: Tensor
    """[P], detached: the largest score of each positive."""
    qualities: Tensor
    """[P], detached: IoU of each positive's predicted box with its target, above 0."""
    statistics: dict[str, Tensor]
    """Detached scalars of what people watch; reading their values makes the host wait."""


class RankingCriterion(nn.Module):
    """Classification by ranking, and the losses of the positives' boxes, for any detection head.

    The recipe of RS Loss (Oksuz et al., ICCV 2021), which the bucketed losses share: one ranking
    over all anchors x classes of the batch, no sampling; the box loss is the GIoU loss of the
    positives, weighted by their largest predicted score and, with ``self_balance``, scaled to the
    value of the classification loss. A head may bring other box losses: DETR's layers L1 and GIoU.

    aLRP takes the box loss into its ranking: the localisation part is its box loss, and is left to
    :class:`EpochBalance` to balance.

    Args:
        loss: the ranking loss, for example ``RankingLoss("brs")``.
        box_weight: factor on the box losses, one for all or by their names; None takes 1 with
            ``self_balance`` and 2 without, the AP Loss setting of the paper.
        self_balance: scale each box loss by detach(classification loss) / detach(box loss); None
            takes the objective's habit: on for RS and aLRP, off for AP.
        rank_weight: factor on the classification losses; box losses are balanced by the product.
        weight: factor on every loss that is returned (0.2 in the RPN).
    """

    def __init__(
        self,
        loss: RankingLoss,
        *,
        box_weight: float | Mapping[str, float] | None = None,
        self_balance: bool | None = None,
        rank_weight: float = 1.0,
        weight: float = 1.0,
    ):
        super().__init__()
        self.loss = loss
        self.self_balance = loss.objective != "ap" if self_balance is None else self_balance
        self.box_weight = (1.0 if self.self_balance else 2.0) if box_weight is None else box_weight
        self.rank_weight = rank_weight
        self.weight = weight

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        positives: Tensor,
        pred_boxes: Tensor,
        target_boxes: Tensor,
        box_losses: Mapping[str, Tensor] | None = None,
        group: "torch.distributed.ProcessGroup | None" = None,
    ) -> RankingResult:
        """Losses of one head.

        Args:
            logits: [A, C], sigmoid classification without a background column.
            labels: [A], class index, C for background, -1 for ignored: one class a row at most.
            positives: [P], ``positive_rows(labels, C)``, in any order.
            pred_boxes: [P, 4], decoded boxes of the positives, x1, y1, x2, y2 in any unit.
            target_boxes: [P, 4], the boxes that they are assigned to.
            box_losses: losses of the positives by name, each [P], to be averaged with the scores as
                weights, or a scalar, which the head has averaged itself. None: "loss_box_reg", the
                GIoU loss [P].
            group: processes whose images are to be ranked together; None: each process ranks its
                own images. Nothing else is there yet.

        Raises:
            ValueError: logits and labels do not fit each other, or the box losses do not fit aLRP.
            NotImplementedError: a group is given.
        """
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"logits must be [A, C] and labels [A], got {tuple(logits.shape)} and "
                f"{tuple(labels.shape)}"
            )
        if group is not None:
            raise NotImplementedError("a ranking over several processes is not there yet")
        pred_boxes, target_boxes = pred_boxes.float(), target_boxes.float()
        qualities = aligned_box_iou(pred_boxes.detach(), target_boxes).clamp(_MIN_QUALITY, 1.0)
        if box_losses is None:
            with record_function(BOX_MARK):
                box_losses = {BOX_LOSS: generalized_box_iou_loss(pred_boxes, target_boxes)}
        only = next(iter(box_losses.values())) if len(box_losses) == 1 else None
        with record_function(CLASSIFICATION_MARK):
            errors = self.loss.forward_indexed(
                logits,
                positives * logits.shape[1] + labels[positives],
                qualities,
                ignored_rows=labels < 0,
                box_losses=only,  # for aLRP, which takes one
            )
        localisation = errors.pop("loss_loc", None)
        losses = {name: self.rank_weight * error for name, error in errors.items()}
        classification = torch.stack(list(losses.values())).sum().detach()
        scores = logits.detach()[positives].float().sigmoid().amax(dim=1)
        for name, given in box_losses.items():
            error = given if localisation is None else localisation
            errors[name] = score_weighted_mean(error, scores) if error.ndim else error
            balance = self.self_balance and localisation is None
            loss = self_balanced(errors[name], classification) if balance else errors[name]
            losses[name] = self._box_weight(name) * loss
        return RankingResult(
            {name: self.weight * value for name, value in losses.items()},
            classification,
            scores,
            qualities,
            {
                "num_positives": positives.new_full((), positives.numel()),
                "mean_quality": qualities.sum() / max(positives.numel(), 1),
                **{_STATISTICS.get(name, name): each.detach() for name, each in errors.items()},
            },
        )

    def _box_weight(self, name: str) -> float:
        return self.box_weight[name] if isinstance(self.box_weight, Mapping) else self.box_weight
