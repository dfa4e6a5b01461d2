"""Losses of queries: those of Deformable DETR, and by ranking."""

from detectron2.config import CfgNode
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss_jit
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function
from torchvision.ops import box_convert

from ...balance import EpochBalance
from ...config import SCORE_LOSS, ranking_scope
from ...criterion import (
    BOX_LOSS,
    BOX_MARK,
    CLASSIFICATION_MARK,
    RankingCriterion,
    RankingResult,
    giou_losses,
    self_balanced,
    sums_of_group,
)
from ..ranking import build_criterion, put_statistics, ranking_group
from .assignment import Assigned
from .query_head import Predictions


def build_query_losses(cfg: CfgNode, groups: dict[str, int]) -> nn.Module:
    """The losses that MODEL.RANKING.LOSS names, of groups of queries.

    Args:
        groups: how many layers predict for each group of queries, by the group's name.
    """
    codetr = cfg.MODEL.CODETR
    weights = {"loss_bbox": codetr.L1_LOSS_WEIGHT, "loss_giou": codetr.GIOU_LOSS_WEIGHT}
    if cfg.MODEL.RANKING.LOSS == SCORE_LOSS:
        return ScoreQueryLosses({"loss_cls": codetr.CLASS_LOSS_WEIGHT, **weights})
    criterion = build_criterion(cfg)
    criterion.rank_weight = codetr.CLASS_LOSS_WEIGHT
    if not criterion.self_balance and cfg.MODEL.RANKING.BOX_LOSS_WEIGHT is None:
        criterion.box_weight = {**weights, BOX_LOSS: codetr.GIOU_LOSS_WEIGHT}
    return RankingQueryLosses(criterion, ranking_scope(cfg), groups)


def _corners(boxes: Tensor) -> Tensor:
    """Normalised cx, cy, w, h -> x1, y1, x2, y2 in thousandths of the image: of a size at which no
    epsilon of a loss is felt."""
    return box_convert(1000 * boxes, "cxcywh", "xyxy")


def _positive_boxes(predictions: Predictions, assigned: Assigned) -> tuple[Tensor, Tensor]:
    """Normalised boxes that the positives predict and are to predict, both [layers, P, 4]."""
    rows = assigned.positives.unsqueeze(2).expand(-1, -1, 4)
    boxes = predictions.boxes.flatten(1, 2).gather(1, rows)
    return boxes, assigned.boxes.to(boxes.dtype)


class ScoreQueryLosses(nn.Module):
    """Focal loss of the scores, L1 and GIoU losses of the boxes, as in Deformable DETR.

    Each is a sum over the layers, divided by the number of positives of a layer, which is averaged
    over the processes.

    Args:
        weights: factors on "loss_cls", "loss_bbox" (L1) and "loss_giou".
    """

    def __init__(self, weights: dict[str, float]):
        super().__init__()
        self.weights = weights

    def forward(
        self, group: str, predictions: Predictions, assigned: Assigned
    ) -> dict[str, Tensor]:
        """Losses by the names "loss_GROUP_cls", ..., of layers that predict for one group."""
        num_classes = predictions.logits.shape[3]
        logits = predictions.logits.flatten(1, 2)
        kept = assigned.labels >= 0
        with record_function(CLASSIFICATION_MARK):
            targets = F.one_hot(assigned.labels.clamp(min=0), num_classes + 1)[kept][:, :-1]
            loss_cls = sigmoid_focal_loss_jit(
                logits[kept], targets.to(logits.dtype), alpha=0.25, gamma=2.0, reduction="sum"
            )
        with record_function(BOX_MARK):
            boxes, targets = _positive_boxes(predictions, assigned)
            l1 = (boxes - targets).abs().sum()
            giou = giou_losses(_corners(boxes), _corners(targets)).sum()
        count = l1.new_tensor([assigned.positives.shape[1]])
        count = (differentiable_all_reduce(count) / comm.get_world_size()).clamp(min=1).squeeze()
        losses = {"loss_cls": loss_cls, "loss_bbox": l1, "loss_giou": giou}
        return {
            name.replace("_", f"_{group}_", 1): self.weights[name] * value / count
            for name, value in losses.items()
        }


class RankingQueryLosses(nn.Module):
    """One ranking for each layer of each group, over all queries x classes of the batch.

    L1 and GIoU losses of the boxes are means over the positives, each self-balanced on its own.
    aLRP takes the GIoU loss into its ranking, which is then balanced over epochs (see
    :class:`EpochBalance`); its L1 loss is balanced by each step's classification loss.

    Args:
        scope: MODEL.RANKING.SCOPE.
        groups: see :func:`build_query_losses`.
    """

    def __init__(self, criterion: RankingCriterion, scope: str, groups: dict[str, int]):
        super().__init__()
        self.criterion = criterion
        self.scope = scope
        alrp = criterion.loss.objective == "alrp" and criterion.self_balance
        self.balance = nn.ModuleDict(
            {
                group: nn.ModuleList(EpochBalance() for _ in range(layers))
                for group, layers in groups.items()
                if alrp
            }
        )

    def forward(
        self, group: str, predictions: Predictions, assigned: Assigned
    ) -> dict[str, Tensor]:
        """Losses by the names "loss_GROUP_rank", ..., sums over the layers of a group."""
        processes = ranking_group(self.scope)
        boxes, targets = _positive_boxes(predictions, assigned)
        (count,) = sums_of_group([boxes.new_tensor(float(boxes.shape[1]))], processes)
        sums: dict[str, Tensor] = {}
        for layer, logits in enumerate(predictions.logits.flatten(1, 2)):
            with record_function(BOX_MARK):
                l1 = (boxes[layer] - targets[layer]).abs().sum() / count.clamp(min=1)
            result = self._rank(
                (logits, assigned.labels[layer], assigned.positives[layer]),
                (_corners(boxes[layer]), _corners(targets[layer])),
                l1,
                count,
            )
            if group in self.balance:
                result = self.balance[group][layer](result)
            for name, value in result.losses.items():
                sums[name] = sums[name] + value if name in sums else value
        put_statistics(group, result.statistics)
        if BOX_LOSS in sums:
            sums["loss_giou"] = sums.pop(BOX_LOSS)
        return {name.replace("_", f"_{group}_", 1): value for name, value in sums.items()}

    def _rank(
        self,
        ranked: tuple[Tensor, Tensor, Tensor],
        corners: tuple[Tensor, Tensor],
        l1: Tensor,
        count: Tensor,
    ) -> RankingResult:
        """The losses of one layer.

        Args:
            ranked: logits [R, C], labels [R], positives [P].
            corners: predicted and target boxes of the positives.
            l1: this process' part of the L1 loss.
            count: the number of positives of all that rank together.
        """
        group = ranking_group(self.scope)
        if self.criterion.loss.objective != "alrp":
            with record_function(BOX_MARK):
                giou = giou_losses(*corners).sum() / count.clamp(min=1)
            box_losses = {"loss_bbox": l1, "loss_giou": giou}
            return self.criterion(*ranked, *corners, box_losses, group)
        result = self.criterion(*ranked, *corners, group=group)
        (l1,) = sums_of_group([l1], group)
        if self.criterion.self_balance:
            l1 = self_balanced(l1, result.classification)
        weight = self.criterion.box_weight
        factor = weight["loss_bbox"] if isinstance(weight, dict) else weight
        return result._replace(losses={**result.losses, "loss_bbox": factor * l1})
