"""What ATSS and PAA share: RetinaNet with a third branch that predicts how good a box is."""

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.nn import sigmoid_focal_loss_jit
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn
from torch.nn import functional as F

from ..criterion import giou_losses, positive_rows
from .ranking import positive_boxes

_MIN_DENOMINATOR = 1e-6


class QualityHead(RetinaNetHead):
    """:class:`RetinaNetHead` with a learned factor a level on the deltas and a quality branch."""

    @configurable
    def __init__(self, *, input_shape, conv_dims, num_anchors, predict_quality, **kwargs):
        """See :class:`RetinaNetHead`; `predict_quality` says whether there is a quality branch."""
        super().__init__(
            input_shape=input_shape, conv_dims=conv_dims, num_anchors=num_anchors, **kwargs
        )
        self.scales = nn.Parameter(torch.ones(len(input_shape)))
        if predict_quality:
            self.quality = nn.Conv2d(conv_dims[-1], num_anchors, kernel_size=3, padding=1)
            nn.init.normal_(self.quality.weight, std=0.01)
            nn.init.constant_(self.quality.bias, 0)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """See :meth:`RetinaNetHead.forward`; a quality branch adds a list of [N, A, H, W]."""
        logits, deltas, qualities = [], [], []
        for feature, scale in zip(features, self.scales, strict=True):
            box_feature = self.bbox_subnet(feature)
            logits.append(self.cls_score(self.cls_subnet(feature)))
            deltas.append(scale * self.bbox_pred(box_feature))
            if hasattr(self, "quality"):
                qualities.append(self.quality(box_feature))
        return (logits, deltas, qualities) if qualities else (logits, deltas)


class QualityRetinaNet(RetinaNet):
    """:class:`RetinaNet` whose score is sqrt(class probability x predicted quality of the box).

    Trained with focal loss, GIoU loss weighted by the target quality, and binary cross-entropy on
    the quality. Subclasses say what quality is and which anchors are positives; those with a
    ranking loss have no quality branch.
    """

    config_section: str
    quality_name: str
    predict_quality = True

    @configurable
    def __init__(self, *, topk: int, box_loss_weight: float, quality_loss_weight: float, **kwargs):
        """
        Args:
            topk: how many anchors of each level are candidates for an object.
            kwargs: see :class:`RetinaNet`; its own box loss options have no effect.
        """
        super().__init__(**kwargs)
        self.topk = topk
        self.box_loss_weight = box_loss_weight
        self.quality_loss_weight = quality_loss_weight

    @classmethod
    def from_config(cls, cfg):
        args = super().from_config(cfg)
        section = cfg.MODEL[cls.config_section]
        shapes = args["backbone"].output_shape()
        features = [shapes[name] for name in args["head_in_features"]]
        return {
            **args,
            "head": QualityHead(cfg, features, predict_quality=cls.predict_quality),
            "topk": section.TOPK,
            "box_loss_weight": section.BOX_LOSS_WEIGHT,
            "quality_loss_weight": section.QUALITY_LOSS_WEIGHT,
        }

    def match(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        pred_logits: list[Tensor],
        pred_deltas: list[Tensor],
    ) -> list[tuple[Tensor, Tensor]]:
        """Which object each anchor is matched to, and whether it is a positive.

        Args:
            anchors: one Boxes of [Ri, 4] a level; R is the sum of the Ri.
            gt_instances: the objects of N images, G in one.
            pred_logits, pred_deltas: one [N, Ri, C] and one [N, Ri, 4] a level.

        Returns:
            For each image an index in 0..G-1 (any, where G is 0), [R], and a mask [R].
        """
        raise NotImplementedError

    def qualities(self, anchors: Tensor, pred_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """What the quality branch is to predict for the positives: three [P, 4] -> [P] in 0..1."""
        raise NotImplementedError

    def forward_training(self, images, features, predictions, gt_instances):
        losses, *_ = self.losses_and_targets(features, predictions, gt_instances)
        return losses

    def losses_and_targets(
        self,
        features: list[Tensor],
        predictions: tuple[list[Tensor], ...],
        gt_instances: list[Instances],
    ) -> tuple[dict[str, Tensor], list[Boxes], list[Tensor], list[Tensor]]:
        """The losses of the head's predictions; anchors, labels and boxes that they come from.

        Returns:
            Losses, anchors of each level, and as :meth:`label_anchors` gives them.
        """
        dimensions = [self.num_classes, 4, 1][: len(predictions)]
        predictions = self._transpose_dense_predictions(predictions, dimensions)
        logits, deltas, *qualities = predictions
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances, logits, deltas)
        losses = self.losses(anchors, logits, gt_labels, deltas, gt_boxes, *qualities)
        return losses, anchors, gt_labels, gt_boxes

    @torch.no_grad()
    def label_anchors(self, anchors, gt_instances, pred_logits, pred_deltas):
        """See :meth:`RetinaNet.label_anchors`; nothing is ignored. Arguments: :meth:`match`."""
        labels, boxes = [], []
        matches = self.match(anchors, gt_instances, pred_logits, pred_deltas)
        for gt, (matched, positive) in zip(gt_instances, matches, strict=True):
            if len(gt):
                labels.append(torch.where(positive, gt.gt_classes[matched], self.num_classes))
                boxes.append(gt.gt_boxes.tensor[matched])
            else:
                labels.append(torch.full_like(matched, self.num_classes))
                boxes.append(gt.gt_boxes.tensor.new_zeros(len(matched), 4))
        return labels, boxes

    def losses(self, anchors, pred_logits, gt_labels, pred_deltas, gt_boxes, pred_qualities):
        """See :meth:`RetinaNet.losses`; `pred_qualities` is one [N, Ri, 1] a level."""
        labels = torch.stack(gt_labels).flatten()
        positives = positive_rows(labels, self.num_classes)
        get_event_storage().put_scalar("num_pos_anchors", len(positives) / len(gt_labels))
        logits = cat(pred_logits, dim=1).flatten(0, 1)
        loss_cls = sigmoid_focal_loss_jit(
            logits,
            F.one_hot(labels, self.num_classes + 1)[:, :-1].to(logits.dtype),
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
            reduction="sum",
        )
        anchor_boxes, pred_boxes, target_boxes = positive_boxes(
            self.box2box_transform, anchors, pred_deltas, gt_boxes, positives
        )
        qualities = self.qualities(anchor_boxes, pred_boxes.detach(), target_boxes)
        box_losses = giou_losses(pred_boxes, target_boxes)
        loss_quality = F.binary_cross_entropy_with_logits(
            cat(pred_qualities, dim=1).flatten()[positives].float(), qualities, reduction="sum"
        )
        sums = torch.stack([qualities.new_tensor(len(positives)), qualities.sum()])
        num_positives, total_quality = differentiable_all_reduce(sums) / comm.get_world_size()
        num_positives = num_positives.clamp(min=1)
        total_quality = total_quality.clamp(min=_MIN_DENOMINATOR)
        return {
            "loss_cls": loss_cls / num_positives,
            "loss_box_reg": self.box_loss_weight * (qualities * box_losses).sum() / total_quality,
            f"loss_{self.quality_name}": self.quality_loss_weight * loss_quality / num_positives,
        }

    def forward_inference(self, images, features, predictions):
        logits, deltas, *qualities = predictions
        if qualities:
            logits = [self._scored(*level) for level in zip(logits, qualities[0], strict=True)]
        return super().forward_inference(images, features, [logits, deltas])

    def _scored(self, logits: Tensor, qualities: Tensor) -> Tensor:
        """The logit of the score: [N, A x C, H, W] and [N, A, H, W] -> [N, A x C, H, W]."""
        probabilities = logits.float().sigmoid().unflatten(1, (-1, self.num_classes))
        scores = (probabilities * qualities.float().sigmoid().unsqueeze(2)).sqrt()
        return scores.logit().reshape(logits.shape)


def smallest_of_each_level(distances: Tensor, anchors: list[Boxes], topk: int) -> Tensor:
    """Indices of the `topk` smallest entries of every level, by row: [G, R] -> [G, K].

    A level of fewer than `topk` anchors gives all of them.
    """
    indices, start = [], 0
    for level in distances.split([len(boxes) for boxes in anchors], dim=1):
        found = level.topk(min(topk, level.shape[1]), dim=1, largest=False)
        indices.append(found.indices + start)
        start += level.shape[1]
    return torch.cat(indices, dim=1)
