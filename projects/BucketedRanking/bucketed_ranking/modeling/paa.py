"""PAA, by its own score-based losses and with a ranking loss."""

import math

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances, pairwise_iou
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor
from torch.nn import functional as F

from ..criterion import aligned_box_iou, giou_losses
from .matching import block_slices, bounded_pairwise_iou
from .quality import QualityRetinaNet, smallest_of_each_level
from .retinanet import RankingRetinaNet

# The defaults of scikit-learn's GaussianMixture, which the PAA code fits with.
_MAX_ITERATIONS, _TOLERANCE, _MIN_VARIANCE = 100, 1e-3, 1e-6

# Score voting (PAA, equation 10 and its code): the width of the weights, the smallest IoU.
_VOTING_WIDTH, _VOTING_MIN_IOU = 0.025, 0.01


def low_loss_candidates(losses: Tensor) -> Tensor:
    """Probabilistic anchor assignment: the candidates of each object that are its positives.

    Two Gaussians are fitted to the losses of an object's candidates. The positives are those up to
    the likeliest candidate of the low-loss Gaussian; all, where there is one candidate or none is
    of that Gaussian (Kim and Lee, ECCV 2020, section 3.2 and figure 3 (c)).

    Args:
        losses: [G, K], infinite where an object has fewer candidates.

    Returns:
        [G, K] bool.
    """
    # Hundreds of tiny operations: one copy to the host costs less than launching them.
    values = losses.double().cpu()
    valid = values.isfinite()
    values = values.where(valid, 0.0)
    log_joint = _fit_two_gaussians(values, valid)
    of_low = valid & (log_joint[..., 0] >= log_joint[..., 1])
    evidence = log_joint.logsumexp(dim=2)
    likeliest = evidence.where(of_low, -math.inf).argmax(dim=1, keepdim=True)
    limits = values.gather(1, likeliest)
    fitted = of_low.any(dim=1, keepdim=True) & (valid.sum(dim=1, keepdim=True) > 1)
    return (valid & (values <= limits.where(fitted, math.inf))).to(losses.device)


def _fit_two_gaussians(values: Tensor, valid: Tensor) -> Tensor:
    """EM for every row at once, from the extremes: two [G, K] -> log joint density [G, K, 2]."""
    counts, x = valid.sum(dim=1), values.unsqueeze(2)
    lowest = values.where(valid, math.inf).amin(dim=1)
    means = torch.stack([lowest, values.where(valid, -math.inf).amax(dim=1)], dim=1)
    variances, weights = torch.ones_like(means), torch.full_like(means, 0.5)

    def log_joint() -> Tensor:
        spread = variances.unsqueeze(1)
        log_density = (x - means.unsqueeze(1)).square() / spread + (2 * math.pi * spread).log()
        return weights.log().unsqueeze(1) - log_density / 2

    # A row stops on its own, when its mean log-likelihood does.
    running, previous = counts > 1, torch.full_like(lowest, -math.inf)
    for _ in range(_MAX_ITERATIONS):
        if not running.any():
            break
        joint = log_joint()
        evidence = joint.logsumexp(dim=2)
        shares = (joint - evidence.unsqueeze(2)).exp() * valid.unsqueeze(2)
        totals = shares.sum(dim=1) + torch.finfo(x.dtype).eps
        row = running.unsqueeze(1)
        means = torch.where(row, (shares * x).sum(dim=1) / totals, means)
        scatter = (shares * (x - means.unsqueeze(1)).square()).sum(dim=1)
        variances = torch.where(row, scatter / totals + _MIN_VARIANCE, variances)
        weights = torch.where(row, totals / totals.sum(dim=1, keepdim=True), weights)
        likelihood = (evidence * valid).sum(dim=1) / counts
        running = running & ((likelihood - previous).abs() >= _TOLERANCE)
        previous = likelihood
    return log_joint()


def vote(found: Instances, candidates: Instances) -> Boxes:
    """Score voting: each box as the mean of the candidates of its class around it.

    A candidate weighs score x exp(-(1 - IoU)^2 / 0.025).

    Args:
        found: the detections that NMS left, with "pred_boxes" and "pred_classes".
        candidates: those before NMS, with "scores" too.
    """
    ious = pairwise_iou(found.pred_boxes, candidates.pred_boxes)
    around = ious > _VOTING_MIN_IOU
    around = around & (found.pred_classes.unsqueeze(1) == candidates.pred_classes)
    weights = around * candidates.scores * (-(1 - ious).square() / _VOTING_WIDTH).exp()
    totals = weights.sum(dim=1, keepdim=True)
    own = found.pred_boxes.tensor
    return Boxes(torch.where(totals > 0, weights @ candidates.pred_boxes.tensor / totals, own))


@META_ARCH_REGISTRY.register()
class PAA(QualityRetinaNet):
    """PAA (Kim and Lee, ECCV 2020): positives by what they cost the model; quality is IoU."""

    config_section = "PAA"
    quality_name = "iou"

    @configurable
    def __init__(self, *, score_voting: bool, **kwargs):
        """See :class:`QualityRetinaNet`; `score_voting` refines what NMS leaves by :func:`vote`."""
        super().__init__(**kwargs)
        self.score_voting = score_voting

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "score_voting": cfg.MODEL.PAA.SCORE_VOTING}

    def match(self, anchors, gt_instances, pred_logits, pred_deltas):
        """See :meth:`QualityRetinaNet.match`.

        Candidates are the `topk` anchors of each level with the lowest loss among those that the
        matcher gives an object; :func:`low_loss_candidates` tells the positives.
        """
        all_anchors = Boxes.cat(anchors)
        images = zip(gt_instances, cat(pred_logits, dim=1), cat(pred_deltas, dim=1), strict=True)
        matches, losses, candidates = [], [], []
        for gt, logits, deltas in images:
            matched, labels = self.anchor_matcher(bounded_pairwise_iou(gt.gt_boxes, all_anchors))
            anchor_losses = self._anchor_losses(all_anchors, gt, matched, logits, deltas)
            objects = torch.arange(len(gt), device=matched.device).unsqueeze(1)
            matches.append(matched)
            indices = []
            for rows in block_slices(len(gt), len(all_anchors)):
                of_object = (matched == objects[rows]) & (labels == 1)
                own = anchor_losses.where(of_object, math.inf)
                chosen = smallest_of_each_level(own, anchors, self.topk)
                losses.append(own.gather(1, chosen))
                indices.append(chosen.flatten())
            candidates.append(torch.cat(indices))
        positives = low_loss_candidates(torch.cat(losses)).split([len(gt) for gt in gt_instances])
        # An anchor may be among the candidates of an object without being its own, but never twice.
        masks = [
            torch.zeros_like(matched).scatter_add_(0, index, positive.flatten().long()) > 0
            for matched, index, positive in zip(matches, candidates, positives, strict=True)
        ]
        return list(zip(matches, masks, strict=True))

    def _anchor_losses(
        self, anchors: Boxes, gt: Instances, matched: Tensor, logits: Tensor, deltas: Tensor
    ) -> Tensor:
        """Focal loss + GIoU loss of each anchor as a positive of the object it is matched to: [R].

        The score of section 3.2 as a cost; the ranking form of the bucketed paper's code keeps it.
        """
        if len(gt) == 0:
            return logits.new_zeros(len(anchors))
        classes = F.one_hot(gt.gt_classes[matched], self.num_classes)
        focal = sigmoid_focal_loss_jit(
            logits.float(),
            classes.float(),
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
        )
        pred_boxes = self.box2box_transform.apply_deltas(deltas, anchors.tensor)
        boxes = giou_losses(pred_boxes, gt.gt_boxes.tensor[matched])
        return focal.sum(dim=1) + boxes

    def qualities(self, anchors, pred_boxes, target_boxes):
        """IoU of the predicted boxes with their objects."""
        return aligned_box_iou(pred_boxes, target_boxes)

    def inference_single_image(self, anchors, box_cls, box_delta, image_size):
        """See :meth:`RetinaNet.inference_single_image`."""
        found = super().inference_single_image(anchors, box_cls, box_delta, image_size)
        if self.score_voting:
            limits = self.test_score_thresh, self.test_topk_candidates
            candidates = self._decode_multi_level_predictions(
                anchors, box_cls, box_delta, *limits, image_size
            )
            found.pred_boxes = vote(found, candidates)
        return found


@META_ARCH_REGISTRY.register()
class RankingPAA(RankingRetinaNet, PAA):
    """:class:`PAA` with a ranking loss, which makes the IoU branch superfluous."""

    predict_quality = False
