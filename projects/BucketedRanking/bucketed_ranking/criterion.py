"""The one place where a detection head meets a ranking loss."""

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torchvision.ops import generalized_box_iou_loss

from .losses import RankingLoss

CLASSIFICATION_MARK = "bucketrank.classification_loss"
BOX_MARK = "bucketrank.box_loss"
"""What torch.profiler calls the losses."""

# A positive whose predicted box misses its target keeps this quality: it stays a positive.
_MIN_QUALITY = 1e-6
_MIN_DENOMINATOR = 1e-6


def positive_rows(labels: Tensor, num_classes: int) -> Tensor:
    """Indices of the anchors or proposals that are assigned to an object.

    Their number decides the shapes of everything that follows, so this is the one point of a
    head's loss at which an accelerator has to wait for the host.

    Args:
        labels: [A], class index in 0..C-1, C for background, -1 for ignored.
        num_classes: C.

    Returns:
        [P] int64, ascending.
    """
    return torch.nonzero((labels >= 0) & (labels < num_classes)).squeeze(1)


def aligned_box_iou(boxes: Tensor, targets: Tensor) -> Tensor:
    """IoU of each box with the target of the same row; both [P, 4] as x1, y1, x2, y2 -> [P]."""
    top_left = torch.maximum(boxes[:, :2], targets[:, :2])
    bottom_right = torch.minimum(boxes[:, 2:], targets[:, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + (targets[:, 2:] - targets[:, :2]).prod(
        dim=1
    )
    return intersection / (areas - intersection).clamp(min=_MIN_DENOMINATOR)


def dice_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of each mask: 1 - 2 sum(p t) / (sum(p^2) + sum(t^2)), p = sigmoid(logits).

    V-Net (Milletari et al., 3DV 2016), equation 3, which RS Loss takes for masks.

    Args:
        logits: [M, H, W].
        targets: [M, H, W], 1 on the object, 0 elsewhere; bool or a number.

    Returns:
        [M] float, in 0..1.
    """
    probabilities, targets = logits.float().sigmoid().flatten(1), targets.float().flatten(1)
    overlaps = 2 * (probabilities * targets).sum(dim=1)
    sums = probabilities.square().sum(dim=1) + targets.square().sum(dim=1)
    return 1 - overlaps / sums.clamp(min=_MIN_DENOMINATOR)


def score_weighted_mean(losses: Tensor, scores: Tensor) -> Tensor:
    """Mean of the positives' losses, weighted by their scores; both [P] -> scalar, 0 for P = 0."""
    return (scores * losses).sum() / scores.sum().clamp(min=_MIN_DENOMINATOR)


class RankingCriterion(nn.Module):
    """Classification by ranking plus score-weighted GIoU, for any dense or RoI head.

    The recipe of RS Loss (Oksuz et al., ICCV 2021), which the bucketed losses share: one ranking
    over all anchors x classes of the batch, no sampling; the box loss is the GIoU loss of the
    positives, weighted by their largest predicted score and, with ``self_balance``, scaled to the
    value of the classification loss.

    Args:
        loss: the ranking loss, for example ``RankingLoss("brs")``.
        box_weight: factor on the box loss; None takes 1 with ``self_balance`` and 2 without, the
            AP Loss setting of the paper.
        self_balance: scale the box loss by detach(classification loss) / detach(box loss); None
            takes the objective's habit: on for RS and aLRP, off for AP.
        weight: factor on every loss that is returned (0.2 in the RPN).
    """

    def __init__(
        self,
        loss: RankingLoss,
        *,
        box_weight: float | None = None,
        self_balance: bool | None = None,
        weight: float = 1.0,
    ):
        super().__init__()
        self.loss = loss
        self.self_balance = loss.objective != "ap" if self_balance is None else self_balance
        self.box_weight = (1.0 if self.self_balance else 2.0) if box_weight is None else box_weight
        self.weight = weight
        self.statistics: dict[str, Tensor] = {}
        self.positive_scores: Tensor | None = None
        self._classification: Tensor | None = None

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        positives: Tensor,
        pred_boxes: Tensor,
        target_boxes: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of one head.

        Args:
            logits: [A, C], sigmoid classification without a background column.
            labels: [A], class index, C for background, -1 for ignored.
            positives: [P], ``positive_rows(labels, C)``.
            pred_boxes: [P, 4], decoded boxes of the positives, x1, y1, x2, y2 in pixels.
            target_boxes: [P, 4], the boxes that they are assigned to.

        Returns:
            Scalars "loss_rank", "loss_box_reg" and, for RS, "loss_sort". After the call,
            ``statistics`` holds detached scalars of what people watch; reading their values is
            left to whoever logs them, so that nothing here makes the device wait.
            ``positive_scores`` [P] then are the largest scores of the positives, detached.
        """
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"logits must be [A, C] and labels [A], got {tuple(logits.shape)} and "
                f"{tuple(labels.shape)}"
            )
        num_classes = logits.shape[1]
        with record_function(BOX_MARK):
            box_losses = generalized_box_iou_loss(pred_boxes.float(), target_boxes.float())
        qualities = aligned_box_iou(pred_boxes.detach().float(), target_boxes.float())
        qualities = qualities.clamp(_MIN_QUALITY, 1.0)

        with record_function(CLASSIFICATION_MARK):
            losses = self.loss.forward_indexed(
                logits,
                positives * num_classes + labels[positives],
                qualities,
                ignored_rows=labels < 0,
                # The GIoU loss lies in 0..2, aLRP's localisation error in 0..1.
                box_losses=box_losses / 2 if self.loss.objective == "alrp" else None,
            )
        localisation = losses.pop("loss_loc", None)
        self._classification = torch.stack(list(losses.values())).sum().detach()
        self.positive_scores = logits.detach()[positives].float().sigmoid().amax(dim=1)
        if localisation is None:
            localisation = score_weighted_mean(box_losses, self.positive_scores)
        losses["loss_box_reg"] = self.box_weight * self.balanced(localisation)

        self.statistics = {
            "num_positives": positives.new_full((), positives.numel()),
            "mean_quality": qualities.sum() / max(positives.numel(), 1),
            "box_error": localisation.detach(),
            "ranking_error": losses["loss_rank"].detach(),
        }
        if "loss_sort" in losses:
            self.statistics["sorting_error"] = losses["loss_sort"].detach()
        return {name: self.weight * value for name, value in losses.items()}

    def balanced(self, loss: Tensor) -> Tensor:
        """A scalar loss of the positives, with ``self_balance`` scaled to the classification loss.

        That is the classification loss of the last call; the mask loss is balanced like the box
        loss, which this serves too.
        """
        if not self.self_balance:
            return loss
        return loss * self._classification / loss.detach().clamp(min=_MIN_DENOMINATOR)
