"""RetinaNet with a ranking loss."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet

from ..criterion import RankingCriterion
from .ranking import build_balance, build_criterion, dense_head_losses


@META_ARCH_REGISTRY.register()
class RankingRetinaNet(RetinaNet):
    """:class:`RetinaNet` whose losses come from a :class:`RankingCriterion`.

    Its parameters are RetinaNet's, so checkpoints move freely between the two.
    """

    @configurable
    def __init__(self, *, criterion: RankingCriterion, **kwargs):
        """
        Args:
            criterion: turns logits, labels and boxes into losses.
            kwargs: see :class:`RetinaNet`; its own loss options have no effect.
        """
        super().__init__(**kwargs)
        self.criterion = criterion
        self.balance = build_balance(criterion)

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "criterion": build_criterion(cfg)}

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """See :meth:`RetinaNet.losses`; the losses are those of :class:`RankingCriterion`."""
        labels = torch.stack(gt_labels)
        return dense_head_losses(
            self, "dense_head", anchors, pred_logits, labels, pred_anchor_deltas, gt_boxes
        )
