"""RetinaNet with a ranking loss."""

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet

from .ranking import RankingHead


@META_ARCH_REGISTRY.register()
class RankingRetinaNet(RankingHead, RetinaNet):
    """:class:`RetinaNet` whose losses come from a :class:`RankingCriterion`.

    Its parameters are RetinaNet's, so checkpoints move freely between the two.
    """

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """See :meth:`RetinaNet.losses`; the losses are those of :class:`RankingCriterion`."""
        labels = torch.stack(gt_labels)
        return self.dense_losses(
            "dense_head", anchors, pred_logits, labels, pred_anchor_deltas, gt_boxes
        )
