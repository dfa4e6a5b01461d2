"""ATSS, by its own score-based losses and with a ranking loss."""

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from .matching import block_slices
from .quality import QualityRetinaNet, smallest_of_each_level
from .retinanet import RankingRetinaNet

# A positive's centre lies at least this far inside its object, in pixels (the original code).
_MIN_DISTANCE_TO_BORDER = 0.01


def atss_match_quality(anchors: list[Boxes], gt_boxes: Boxes, topk: int) -> Tensor:
    """Adaptive training sample selection: the IoU of each anchor with the objects it is good for.

    The `topk` anchors of each level whose centres are closest to the object's are its candidates;
    those with an IoU of at least mean + standard deviation of the candidates', and with their
    centre in the object, are good for it (Zhang et al., CVPR 2020, algorithm 1).

    Args:
        anchors: one Boxes of [Ri, 4] a level; R is the sum of the Ri.
        gt_boxes: [G, 4].

    Returns:
        [G, R], -1 where the anchor is no positive of the object.
    """
    all_anchors = Boxes.cat(anchors)
    centers, objects = all_anchors.get_centers(), gt_boxes.tensor
    offsets = centers - gt_boxes.get_centers()[:, None]
    candidates = smallest_of_each_level(offsets.square().sum(dim=2), anchors, topk)
    ious = pairwise_iou(gt_boxes, all_anchors).gather(1, candidates)
    points = centers[candidates]
    to_border = torch.cat([points - objects[:, None, :2], objects[:, None, 2:] - points], dim=2)
    threshold = ious.mean(dim=1, keepdim=True) + ious.std(dim=1, keepdim=True)
    good = (ious >= threshold) & (to_border.amin(dim=2) > _MIN_DISTANCE_TO_BORDER)
    quality = ious.new_full((len(objects), len(centers)), -1.0)
    return quality.scatter_(1, candidates, torch.where(good, ious, -1.0))


@META_ARCH_REGISTRY.register()
class ATSS(QualityRetinaNet):
    """ATSS (Zhang et al., CVPR 2020): positives by adaptive selection; quality is centerness."""

    config_section = "ATSS"
    quality_name = "centerness"

    def match(self, anchors, gt_instances, pred_logits, pred_deltas):
        """See :meth:`QualityRetinaNet.match`; the object with the best IoU has the anchor."""
        num_anchors = sum(map(len, anchors))
        matches = []
        for gt in gt_instances:
            best = anchors[0].tensor.new_full((num_anchors,), -1.0)
            matched = torch.zeros_like(best, dtype=torch.long)
            for rows in block_slices(len(gt), num_anchors):
                quality = atss_match_quality(anchors, gt.gt_boxes[rows], self.topk)
                if len(quality):
                    found, index = quality.max(dim=0)
                    matched = torch.where(found > best, index + rows.start, matched)
                    best = torch.maximum(found, best)
            matches.append((matched, best >= 0))
        return matches

    def qualities(self, anchors, pred_boxes, target_boxes):
        """Centerness (Tian et al., FCOS, ICCV 2019, equation 3) of the anchors' centres."""
        centers = Boxes(anchors).get_centers()
        before, after = centers - target_boxes[:, :2], target_boxes[:, 2:] - centers
        ratios = torch.minimum(before, after) / torch.maximum(before, after)
        return ratios.prod(dim=1).sqrt()


@META_ARCH_REGISTRY.register()
class RankingATSS(RankingRetinaNet, ATSS):
    """:class:`ATSS` with a ranking loss, which makes the centerness branch superfluous."""

    predict_quality = False
