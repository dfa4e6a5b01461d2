"""Region proposal network with a ranking loss."""

import torch
from detectron2.config import configurable
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN

from ..criterion import RankingCriterion
from .ranking import build_balance, build_criterion, dense_head_losses


@PROPOSAL_GENERATOR_REGISTRY.register()
class RankingRPN(RPN):
    """:class:`RPN` that ranks all its anchors: no sampling, losses of :class:`RankingCriterion`.

    Its parameters are RPN's, so checkpoints move freely between the two.
    """

    @configurable
    def __init__(self, *, criterion: RankingCriterion, **kwargs):
        """
        Args:
            criterion: turns logits, labels and boxes into losses.
            kwargs: see :class:`RPN`; its own sampling and loss options have no effect.
        """
        super().__init__(**kwargs)
        self.criterion = criterion
        self.balance = build_balance(criterion)

    @classmethod
    def from_config(cls, cfg, input_shape):
        weight = cfg.MODEL.RANKING.RPN_LOSS_WEIGHT
        return {**super().from_config(cfg, input_shape), "criterion": build_criterion(cfg, weight)}

    def _subsample_labels(self, label):
        return label

    def losses(self, anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """See :meth:`RPN.losses`; the losses are those of :class:`RankingCriterion`."""
        objectness = torch.stack(gt_labels)
        losses = dense_head_losses(
            self,
            "rpn",
            anchors,
            [logits.unsqueeze(-1) for logits in pred_objectness_logits],
            # RPN's 1 (object), 0 (background) as class indices 0 and 1; -1 stays ignored.
            torch.where(objectness >= 0, 1 - objectness, objectness),
            pred_anchor_deltas,
            gt_boxes,
        )
        return {name.replace("loss_", "loss_rpn_", 1): value for name, value in losses.items()}
