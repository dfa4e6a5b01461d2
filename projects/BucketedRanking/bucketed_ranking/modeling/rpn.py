"""Region proposal network with a ranking loss."""

import torch
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals

from .ranking import RankingHead, build_criterion


@PROPOSAL_GENERATOR_REGISTRY.register()
class RankingRPN(RankingHead, RPN):
    """:class:`RPN` that ranks all its anchors: no sampling, losses of :class:`RankingCriterion`.

    Its parameters are RPN's, so checkpoints move freely between the two.
    """

    @classmethod
    def from_config(cls, cfg, input_shape):
        criterion = build_criterion(cfg, weight=cfg.MODEL.RANKING.RPN_LOSS_WEIGHT)
        return {**super().from_config(cfg, input_shape), "criterion": criterion}

    def _subsample_labels(self, label):
        return label

    @torch.no_grad()
    def predict_proposals(self, anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes):
        """See :meth:`RPN.predict_proposals`; drops boxes that are not finite, where Detectron2
        raises: the losses say so, and in one ranking of several processes all must compute them.
        """
        return find_top_rpn_proposals(
            self._decode_proposals(anchors, pred_anchor_deltas),
            pred_objectness_logits,
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            training=False,
        )

    def losses(self, anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """See :meth:`RPN.losses`; the losses are those of :class:`RankingCriterion`."""
        objectness = torch.stack(gt_labels)
        losses = self.dense_losses(
            "rpn",
            anchors,
            [logits.unsqueeze(-1) for logits in pred_objectness_logits],
            # RPN's 1 (object), 0 (background) as class indices 0 and 1; -1 stays ignored.
            torch.where(objectness >= 0, 1 - objectness, objectness),
            pred_anchor_deltas,
            gt_boxes,
        )
        return {name.replace("loss_", "loss_rpn_", 1): value for name, value in losses.items()}
