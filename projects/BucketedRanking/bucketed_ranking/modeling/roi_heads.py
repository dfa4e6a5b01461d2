"""Second-stage heads with a ranking loss."""

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from torch import nn
from torch.nn import functional as F

from ..criterion import RankingCriterion, positive_rows
from .ranking import build_criterion


class RankingFastRCNNOutputLayers(FastRCNNOutputLayers):
    """:class:`FastRCNNOutputLayers` with sigmoid scores, no background column, a ranking loss."""

    @configurable
    def __init__(self, input_shape, *, criterion: RankingCriterion, **kwargs):
        """
        Args:
            input_shape: see :class:`FastRCNNOutputLayers`.
            criterion: turns logits, labels and boxes into losses.
            kwargs: see :class:`FastRCNNOutputLayers`; its own loss options have no effect.
        """
        super().__init__(input_shape, **kwargs)
        self.criterion = criterion
        self.cls_score = nn.Linear(self.cls_score.in_features, self.num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.constant_(self.cls_score.bias, 0)

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {**super().from_config(cfg, input_shape), "criterion": build_criterion(cfg)}

    def losses(self, predictions, proposals):
        """See :meth:`FastRCNNOutputLayers.losses`; losses of :class:`RankingCriterion`."""
        logits, deltas = predictions
        labels = cat([p.gt_classes for p in proposals])
        proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals])
        # Without ground truth in an image its proposals are all negatives: any box will do.
        gt_boxes = cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        positives = positive_rows(labels, self.num_classes)
        deltas = deltas.view(len(deltas), -1, proposal_boxes.shape[1])[positives]
        columns = labels[positives] if deltas.shape[1] > 1 else torch.zeros_like(positives)
        pred_boxes = self.box2box_transform.apply_deltas(
            deltas[torch.arange(len(deltas), device=deltas.device), columns],
            proposal_boxes[positives],
        )
        return self.criterion(logits, labels, positives, pred_boxes, gt_boxes[positives])

    def predict_probs(self, predictions, proposals):
        """See :meth:`FastRCNNOutputLayers.predict_probs`; the background column is all zero."""
        scores = F.pad(predictions[0].sigmoid(), (0, 1))
        return scores.split([len(p) for p in proposals])


@ROI_HEADS_REGISTRY.register()
class RankingROIHeads(StandardROIHeads):
    """:class:`StandardROIHeads` that ranks all proposals x classes: no sampling."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = RankingFastRCNNOutputLayers(cfg, ret["box_head"].output_shape)
        return ret

    def _sample_proposals(self, matched_idxs, matched_labels, gt_classes):
        """Label every proposal and keep all; see :meth:`ROIHeads._sample_proposals`."""
        if gt_classes.numel() == 0:
            labels = torch.full_like(matched_idxs, self.num_classes)
        else:
            labels = gt_classes[matched_idxs]
            labels[matched_labels == 0] = self.num_classes
            labels[matched_labels == -1] = -1
        return torch.arange(len(labels), device=labels.device), labels
