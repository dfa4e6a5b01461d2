"""Second-stage heads with a ranking loss."""

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    FastRCNNOutputLayers,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY, MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn import functional as F

from ..config import ranking_scope
from ..criterion import dice_losses, positive_rows, self_balanced, sums_of_group, weighted_mean
from .ranking import RankingHead, put_statistics, ranking_group


class RankingFastRCNNOutputLayers(RankingHead, FastRCNNOutputLayers):
    """:class:`FastRCNNOutputLayers` with sigmoid scores, no background column, a ranking loss."""

    @configurable
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cls_score = nn.Linear(self.cls_score.in_features, self.num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.constant_(self.cls_score.bias, 0)

    def losses(self, predictions, proposals):
        """See :meth:`FastRCNNOutputLayers.losses`; losses of :class:`RankingCriterion`.

        The boxes of proposals whose field "in_box_loss" is False do not count in the box loss.

        For the mask head, proposals are given "scores" [Ri], the largest score of each positive
        (0 for the rest), and "classification_loss" [Ri], that of their ranking.
        """
        logits, deltas = predictions
        labels = cat([p.gt_classes for p in proposals])
        proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals])
        # Without ground truth in an image its proposals are all negatives: any box will do.
        gt_boxes = cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        positives = positive_rows(labels, self.num_classes)
        deltas = deltas.unflatten(1, (-1, proposal_boxes.shape[1]))[positives]
        columns = labels[positives] if deltas.shape[1] > 1 else torch.zeros_like(positives)
        pred_boxes = self.box2box_transform.apply_deltas(
            deltas[torch.arange(len(deltas), device=deltas.device), columns],
            proposal_boxes[positives],
        )
        in_box_loss = None
        if proposals[0].has("in_box_loss"):
            in_box_loss = cat([p.in_box_loss for p in proposals])[positives]
        result = self.rank(
            "roi_head",
            logits,
            labels,
            positives,
            pred_boxes,
            gt_boxes[positives],
            in_box_loss=in_box_loss,
        )
        scores = result.scores.new_zeros(len(labels)).index_copy(0, positives, result.scores)
        for each, part in zip(proposals, scores.split([len(p) for p in proposals]), strict=True):
            each.scores = part
            each.classification_loss = result.classification.expand(len(each))
        return result.losses

    def predict_probs(self, predictions, proposals):
        """See :meth:`FastRCNNOutputLayers.predict_probs`; the background column is all zero."""
        scores = F.pad(predictions[0].sigmoid(), (0, 1))
        return scores.split([len(p) for p in proposals])


@ROI_MASK_HEAD_REGISTRY.register()
class RankingMaskHead(MaskRCNNConvUpsampleHead):
    """:class:`MaskRCNNConvUpsampleHead` with RS Loss' Dice loss: score-weighted, self-balanced.

    It is balanced with every loss and whatever MODEL.RANKING.SELF_BALANCE is, which is about boxes:
    left alone, it is too small for masks to be learned (docs/results/recipes.md). Its parameters
    are those of the base class. In training it takes positives only, with the fields that
    :class:`RankingFastRCNNOutputLayers` gives them beside those that the base class needs.
    """

    @configurable
    def __init__(self, *args, scope: str = "process", **kwargs):
        super().__init__(*args, **kwargs)
        self.scope = scope

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {**super().from_config(cfg, input_shape), "scope": ranking_scope(cfg)}

    def forward(self, x, instances):
        """See :meth:`BaseMaskRCNNHead.forward`; there is no visualisation in training."""
        if not self.training:
            return super().forward(x, instances)
        logits = self.layers(x)
        # An image without objects has no masks.
        instances = [each for each in instances if len(each)]
        weighted_sum = 0 * logits.sum()
        weights = classification = holders = weighted_sum.detach()
        if instances:
            scores = cat([each.scores for each in instances])
            weighted_sum = (scores * self._dice_losses(logits, instances)).sum()
            weights = scores.sum()
            classification = instances[0].classification_loss[0]
            holders = torch.ones_like(classification)
        # A process without masks takes part, and hears of the classification loss from the others.
        own = weighted_sum, weights, classification, holders
        weighted_sum, weights, classification, holders = sums_of_group(
            own, ranking_group(self.scope)
        )
        loss = weighted_mean(weighted_sum, weights)
        put_statistics("mask_head", {"mask_error": loss.detach()})
        balanced = self_balanced(loss, classification / holders.clamp(min=1))
        return {"loss_mask": self.loss_weight * balanced}

    def _dice_losses(self, logits, instances):
        targets = cat(
            [
                each.gt_masks.crop_and_resize(each.proposal_boxes.tensor, logits.shape[-1])
                for each in instances
            ]
        ).to(logits.device)
        rows = torch.arange(len(logits), device=logits.device)
        agnostic = logits.shape[1] == 1
        columns = torch.zeros_like(rows) if agnostic else cat([i.gt_classes for i in instances])
        return dice_losses(logits[rows, columns], targets)


class _UnsampledROIHeads:
    """What ranking changes in :class:`StandardROIHeads` and its subclasses.

    All proposals x classes are ranked: no sampling; its options have no effect. The mask head
    trains on `max_masks` positives of the process' batch at most, drawn anew each time; in a
    cascade, on those of the first stage.
    """

    @configurable
    def __init__(self, *, max_masks: int, **kwargs):
        super().__init__(**kwargs)
        self.max_masks = max_masks

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {**super().from_config(cfg, input_shape), "max_masks": cfg.MODEL.RANKING.MAX_MASKS}

    def _sample_proposals(self, matched_idxs, matched_labels, gt_classes):
        """Label every proposal and keep all; see :meth:`ROIHeads._sample_proposals`."""
        if gt_classes.numel() == 0:
            labels = torch.full_like(matched_idxs, self.num_classes)
        else:
            labels = gt_classes[matched_idxs]
            labels[matched_labels == 0] = self.num_classes
            labels[matched_labels == -1] = -1
        return torch.arange(len(labels), device=labels.device), labels

    def _forward_mask(self, features, instances):
        """See :meth:`StandardROIHeads._forward_mask`."""
        if self.mask_on and self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
            counts = [len(each) for each in instances]
            chosen = torch.zeros(sum(counts), dtype=torch.bool)
            chosen[torch.randperm(len(chosen))[: self.max_masks]] = True
            chosen = chosen.to(instances[0].gt_classes.device).split(counts)
            instances = [each[part] for each, part in zip(instances, chosen, strict=True)]
        return super()._forward_mask(features, instances)


@ROI_HEADS_REGISTRY.register()
class RankingROIHeads(_UnsampledROIHeads, StandardROIHeads):
    """:class:`StandardROIHeads` that ranks all proposals x classes: no sampling."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = RankingFastRCNNOutputLayers(cfg, ret["box_head"].output_shape)
        return ret


@ROI_HEADS_REGISTRY.register()
class RankingCascadeROIHeads(_UnsampledROIHeads, CascadeROIHeads):
    """:class:`CascadeROIHeads` that ranks all proposals x classes, in each stage on its own.

    As in the bucketed losses' cascade, the ground truth is among the proposals of every stage, not
    of the first alone: a stage whose predecessor is still bad would have no positives to rank. In
    later stages it is not in the box loss, where it could only teach them to leave boxes where they
    are (docs/results/recipes.md).
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictors"] = [
            RankingFastRCNNOutputLayers(
                cfg, head.output_shape, box2box_transform=predictor.box2box_transform
            )
            for head, predictor in zip(ret["box_heads"], ret["box_predictors"], strict=True)
        ]
        return ret

    def _create_proposals_from_boxes(self, boxes, image_sizes):
        """See :meth:`CascadeROIHeads._create_proposals_from_boxes`; a box that is not finite is an
        empty one, as in :meth:`RankingRPN.predict_proposals`."""
        boxes = [each.detach().nan_to_num(0, 0, 0) for each in boxes]
        return super()._create_proposals_from_boxes(boxes, image_sizes)

    def _match_and_label_boxes(self, proposals, stage, targets):
        """See :meth:`CascadeROIHeads._match_and_label_boxes`."""
        if self.proposal_append_gt:
            joined = []
            for each, target in zip(proposals, targets, strict=True):
                boxes = Boxes.cat([each.proposal_boxes, target.gt_boxes])
                in_box_loss = torch.arange(len(boxes), device=boxes.device) < len(each)
                joined.append(
                    Instances(each.image_size, proposal_boxes=boxes, in_box_loss=in_box_loss)
                )
            proposals = joined
        return super()._match_and_label_boxes(proposals, stage, targets)
