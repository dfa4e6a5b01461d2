"""What the heads with a ranking loss share."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from detectron2.config import CfgNode, configurable
from detectron2.layers import cat
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..balance import EpochBalance
from ..config import SCORE_LOSS, ranking_scope
from ..criterion import RankingCriterion, RankingResult, positive_rows
from ..errors import BucketRankError
from ..losses import LOSS_NAMES, QUALITY_LOSSES, QualityLoss, RankingLoss

WRITE_PERIOD = 20
"""Every how many iterations Detectron2's trainer writes what is in the event storage."""


def build_criterion(cfg: CfgNode, weight: float = 1.0) -> RankingCriterion:
    """The criterion that MODEL.RANKING describes; `weight` scales all its losses.

    Raises:
        BucketRankError: LOSS is not the name of a ranking loss, or an option does not suit it.
    """
    ranking = cfg.MODEL.RANKING
    if ranking.LOSS in QUALITY_LOSSES:
        return _criterion(QualityLoss(ranking.LOSS), ranking, weight)
    if ranking.LOSS not in LOSS_NAMES:
        raise BucketRankError(
            f"MODEL.RANKING.LOSS is {ranking.LOSS!r}, but a ranking head needs one of "
            f"{', '.join(LOSS_NAMES)}; for {SCORE_LOSS!r} use Detectron2's own head. (A run's "
            "config.yaml has the heads of its loss: give the config that the run was made from.)"
        )
    try:
        loss = RankingLoss(
            ranking.LOSS,
            delta=ranking.DELTA,
            interpolated=ranking.INTERPOLATED,
            chunk_size=ranking.CHUNK_SIZE,
        )
    except ValueError as error:
        raise BucketRankError(f"MODEL.RANKING does not suit {ranking.LOSS!r}: {error}.") from error
    return _criterion(loss, ranking, weight)


def _criterion(
    loss: RankingLoss | QualityLoss, ranking: CfgNode, weight: float
) -> RankingCriterion:
    return RankingCriterion(
        loss,
        box_weight=ranking.BOX_LOSS_WEIGHT,
        self_balance=ranking.SELF_BALANCE,
        weight=weight,
    )


def ranking_group(scope: str) -> "dist.ProcessGroup | None":
    """The processes that rank together: all, where `scope` is "global" and there are several."""
    several = scope == "global" and comm.get_world_size() > 1
    return dist.group.WORLD if several else None


def put_statistics(name: str, statistics: Mapping[str, Tensor]) -> None:
    """Put scalars into the event storage as "name/key", in the iterations that writers write.

    In the others they stay where they are: reading them makes the host wait for the device.
    """
    storage = get_event_storage()
    if (storage.iter + 1) % WRITE_PERIOD == 0:
        values = torch.stack([value.float() for value in statistics.values()]).tolist()
        for key, value in zip(statistics, values, strict=True):
            storage.put_scalar(f"{name}/{key}", value)


class RankingHead:
    """What a ranking loss adds to a head of Detectron2, which stands behind it among the bases.

    The head's own sampling and loss options have no effect. aLRP's box loss is balanced over
    epochs, unless self-balance is off; see :class:`EpochBalance`. `scope` is MODEL.RANKING.SCOPE.
    """

    @configurable
    def __init__(self, *args, criterion: RankingCriterion, scope: str = "process", **kwargs):
        super().__init__(*args, **kwargs)
        self.criterion = criterion
        self.scope = scope
        alrp = criterion.loss.objective == "alrp"
        self.balance = EpochBalance() if alrp and criterion.self_balance else None

    @classmethod
    def from_config(cls, cfg, *args, **kwargs):
        built = super().from_config(cfg, *args)
        return {**built, "criterion": build_criterion(cfg), "scope": ranking_scope(cfg), **kwargs}

    def rank(self, name: str, *arguments: Tensor, **options: Tensor | None) -> RankingResult:
        """See :meth:`RankingCriterion.forward`; statistics go into the storage under `name`."""
        result = self.criterion(*arguments, **options, group=ranking_group(self.scope))
        put_statistics(name, result.statistics)
        return result if self.balance is None else self.balance(result)

    def dense_losses(
        self,
        name: str,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        labels: Tensor,
        pred_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Losses of a head that predicts for every anchor of every level.

        Args:
            name: of the head in the event storage.
            anchors: one Boxes of [Ri, 4] a level; R is the sum of the Ri.
            pred_logits: one [N, Ri, C] a level.
            labels: [N, R], class index, C for background, -1 for ignored.
            pred_deltas: one [N, Ri, 4] a level.
            gt_boxes: N tensors [R, 4]: the box matched to each anchor.
        """
        logits = cat(pred_logits, dim=1).flatten(0, 1)
        labels = labels.flatten()
        positives = positive_rows(labels, logits.shape[1])
        _, pred_boxes, target_boxes = positive_boxes(
            self.box2box_transform, anchors, pred_deltas, gt_boxes, positives
        )
        return self.rank(name, logits, labels, positives, pred_boxes, target_boxes).losses


def positive_boxes(
    box2box_transform: Box2BoxTransform,
    anchors: list[Boxes],
    pred_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    positives: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors, predicted boxes and matched boxes of the positives, each [P, 4].

    Args:
        positives: [P], indices into the N x R anchors of the batch.
        anchors, pred_deltas, gt_boxes: see :meth:`RankingHead.dense_losses`.
    """
    all_anchors = Boxes.cat(anchors).tensor
    anchor_boxes = all_anchors[positives % len(all_anchors)]
    deltas = cat(pred_deltas, dim=1).flatten(0, 1)[positives]
    pred_boxes = box2box_transform.apply_deltas(deltas, anchor_boxes)
    return anchor_boxes, pred_boxes, torch.cat(gt_boxes)[positives]
