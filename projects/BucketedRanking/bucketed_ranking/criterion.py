"""The one place where a detection head meets a ranking loss. It keeps nothing of a call."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import record_function

from .losses import QualityLoss, RankingLoss
from .losses.processes import sum_in_place

# A positive whose predicted box misses its target keeps this quality: it stays a positive.
_MIN_QUALITY = 1e-6
_MIN_DENOMINATOR = 1e-6
_GIOU_EPSILON = 1e-7  # torchvision's

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
    intersection, union = _overlaps(_precise(boxes), _precise(targets))
    return intersection / union.clamp(min=_MIN_DENOMINATOR)


def giou_losses(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU of each box with the target in its place; both [..., 4] as x1, y1, x2, y2 -> [...].

    Rezatofighi et al., CVPR 2019. The numbers are those of torchvision's
    ``generalized_box_iou_loss``, which makes a GPU wait five times, and five times backward.
    """
    boxes, targets = _precise(boxes), _precise(targets)
    intersection, union = _overlaps(boxes, targets)
    around = torch.cat(
        [torch.minimum(boxes, targets)[..., :2], torch.maximum(boxes, targets)[..., 2:]], dim=-1
    )
    hull = _areas(around)
    outside = (hull - union) / (hull + _GIOU_EPSILON)
    return 1 - intersection / (union + _GIOU_EPSILON) + outside


def _precise(boxes: Tensor) -> Tensor:
    """In half precision areas overflow."""
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))


def _overlaps(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The areas that each box and its target have in common, and together."""
    top_left = torch.maximum(boxes, targets)[..., :2]
    bottom_right = torch.minimum(boxes, targets)[..., 2:]
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    intersection = width * height
    return intersection, _areas(boxes) + _areas(targets) - intersection


def _areas(boxes: Tensor) -> Tensor:
    # Not by torch.prod, whose gradient makes a GPU wait.
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return width * height


def dice_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of each mask: 1 - 2 sum(p t) / (sum(p^2) + sum(t^2)), p = sigmoid(logits).

    V-Net (Milletari et al., 3DV 2016), equation 3, which RS Loss takes for masks. Logits and
    targets, 1 on the object and 0 elsewhere, bool or a number, are [M, H, W]; the losses [M] float.
    """
    probabilities, targets = logits.float().sigmoid().flatten(1), targets.float().flatten(1)
    overlaps = 2 * (probabilities * targets).sum(dim=1)
    sums = probabilities.square().sum(dim=1) + targets.square().sum(dim=1)
    return 1 - overlaps / sums.clamp(min=_MIN_DENOMINATOR)


def weighted_mean(weighted_sum: Tensor, weights: Tensor) -> Tensor:
    """The mean of losses from sum(weight x loss) and sum(weight), both scalars; 0 for no losses."""
    return weighted_sum / weights.clamp(min=_MIN_DENOMINATOR)


def sums_of_group(parts: Sequence[Tensor], group: "dist.ProcessGroup | None") -> list[Tensor]:
    """Sums of scalars over the processes of a group, in one collective; for None, the scalars.

    The gradient goes to the own part, times the number of processes: averaged over them, as
    DistributedDataParallel does, gradients are those of one process that has everything.
    """
    if group is None:
        return list(parts)
    totals = [part.detach().clone() for part in parts]
    sum_in_place(totals, group)
    pairs = zip(totals, parts, strict=True)
    return [_with_gradient(total, part, group.size()) for total, part in pairs]


def _with_gradient(value: Tensor, source: Tensor, factor: int) -> Tensor:
    """`value`, with `factor` times the gradient of `source`."""
    return value.detach() + factor * (source - source.detach())


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
        loss: the ranking loss, for example ``RankingLoss("brs")``; or a loss towards qualities.
        box_weight: factor on the box losses, one for all or by their names; None takes 1 with
            ``self_balance`` and 2 without, the AP Loss setting of the paper.
        self_balance: scale each box loss by detach(classification loss) / detach(box loss); None
            takes the objective's habit: on for RS and aLRP, off for all others.
        rank_weight: factor on the classification losses; box losses are balanced by the product.
        weight: factor on every loss that is returned (0.2 in the RPN).
    """

    def __init__(
        self,
        loss: RankingLoss | QualityLoss,
        *,
        box_weight: float | Mapping[str, float] | None = None,
        self_balance: bool | None = None,
        rank_weight: float = 1.0,
        weight: float = 1.0,
    ):
        super().__init__()
        self.loss = loss
        balanced = loss.objective in ("rs", "alrp")
        self.self_balance = balanced if self_balance is None else self_balance
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
        group: "dist.ProcessGroup | None" = None,
        in_box_loss: Tensor | None = None,
    ) -> RankingResult:
        """Losses of one head.

        Args:
            logits: [A, C], sigmoid classification without a background column.
            labels: [A], class index, C for background, -1 for ignored: one class a row at most.
            positives: [P], ``positive_rows(labels, C)``, in any order.
            pred_boxes: [P, 4], decoded boxes of the positives, x1, y1, x2, y2 in any unit.
            target_boxes: [P, 4], the boxes that they are assigned to.
            box_losses: losses of the positives by name, each [P], to be averaged with the scores as
                weights, or a scalar, which the head has averaged itself (with a group: this
                process' part, of which the sum over the processes is the loss). None:
                "loss_box_reg", the GIoU loss [P].
            group: processes whose images are ranked together, by an exact loss; None: each process
                ranks its own. All must make the call. Losses, classification and statistics are
                then those of all images, the same on every process; their gradients are scaled for
                DistributedDataParallel, which averages them.
            in_box_loss: bool [P], whose boxes count in box losses [P], but for aLRP's; None: all.

        Raises:
            ValueError: logits and labels do not fit each other, the box losses do not fit aLRP, or
                the loss does not rank over a group.
        """
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"logits must be [A, C] and labels [A], got {tuple(logits.shape)} and "
                f"{tuple(labels.shape)}"
            )
        qualities = aligned_box_iou(pred_boxes.detach(), target_boxes).clamp(_MIN_QUALITY, 1.0)
        if box_losses is None:
            with record_function(BOX_MARK):
                box_losses = {BOX_LOSS: giou_losses(pred_boxes, target_boxes)}
        only = next(iter(box_losses.values())) if len(box_losses) == 1 else None
        with record_function(CLASSIFICATION_MARK):
            errors = self.loss.forward_indexed(
                logits,
                positives * logits.shape[1] + labels[positives],
                qualities,
                ignored_rows=labels < 0,
                box_losses=only,  # for aLRP, which takes one
                group=group,
            )
        if group is not None:
            errors = {k: _with_gradient(e, e, group.size()) for k, e in errors.items()}
        localisation = errors.pop("loss_loc", None)
        losses = {name: self.rank_weight * error for name, error in errors.items()}
        classification = torch.stack(list(losses.values())).sum().detach()
        scores = logits.detach()[positives]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).sigmoid().amax(dim=1)
        weights = scores if in_box_loss is None else scores * in_box_loss
        box_sums = [(weights * loss).sum() if loss.ndim else loss for loss in box_losses.values()]
        own = scores.new_full((), len(scores)), qualities.sum(), weights.sum(), *box_sums
        count, total_quality, total_weight, *box_sums = sums_of_group(own, group)
        for (name, given), box_sum in zip(box_losses.items(), box_sums, strict=True):
            if localisation is not None:
                errors[name] = localisation
            else:
                errors[name] = weighted_mean(box_sum, total_weight) if given.ndim else box_sum
            balance = self.self_balance and localisation is None
            loss = self_balanced(errors[name], classification) if balance else errors[name]
            losses[name] = self._box_weight(name) * loss
        return RankingResult(
            {name: self.weight * value for name, value in losses.items()},
            classification,
            scores,
            qualities,
            {
                "num_positives": count,
                "mean_quality": total_quality / count.clamp(min=1),
                **{_STATISTICS.get(name, name): each.detach() for name, each in errors.items()},
            },
        )

    def _box_weight(self, name: str) -> float:
        return self.box_weight[name] if isinstance(self.box_weight, Mapping) else self.box_weight
