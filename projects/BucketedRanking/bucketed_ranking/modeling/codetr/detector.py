"""Co-DETR, and Deformable DETR, which is Co-DETR without auxiliary heads."""

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from ...errors import BucketRankError
from .assignment import HungarianAssigner, objects_of
from .auxiliary import AUXILIARY_HEADS, AuxiliaryHeads
from .neck import ChannelMapper
from .query_head import Predictions, QueryHead
from .query_losses import build_query_losses


@META_ARCH_REGISTRY.register()
class CoDETR(DenseDetector):
    """Co-Deformable-DETR (Zong et al., ICCV 2023), trained by its own losses or by ranking.

    Deformable DETR whose encoder also feeds a Faster R-CNN and an ATSS head, which learn with it;
    their positives are queries of further decoder passes. All of that happens in training only.

    Args:
        auxiliary: None leaves Deformable DETR.
        assigner: says which query is to find which object.
        query_losses: of groups of queries, see :func:`build_query_losses`.
        max_detections: in an image.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: ChannelMapper,
        head: QueryHead,
        auxiliary: AuxiliaryHeads | None,
        assigner: HungarianAssigner,
        query_losses: nn.Module,
        max_detections: int,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        super().__init__(backbone, head, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.neck = neck
        self.auxiliary = auxiliary
        self.assigner = assigner
        self.query_losses = query_losses
        self.max_detections = max_detections

    @classmethod
    def from_config(cls, cfg):
        codetr = cfg.MODEL.CODETR
        _check(cfg)
        backbone = build_backbone(cfg)
        shapes = sorted(backbone.output_shape().values(), key=lambda shape: shape.stride)
        if len(shapes) > codetr.NUM_LEVELS:
            raise BucketRankError(
                f"MODEL.CODETR.NUM_LEVELS is {codetr.NUM_LEVELS}, but the backbone has "
                f"{len(shapes)} features; take as many levels, or more."
            )
        neck = ChannelMapper(shapes, codetr.HIDDEN_DIM, codetr.NUM_LEVELS)
        groups = {"decoder": codetr.DECODER_LAYERS, "encoder": 1}
        if codetr.MAX_EXTRA_QUERIES:
            names = codetr.AUXILIARY_HEADS
            groups |= dict.fromkeys([f"{name}_queries" for name in names], codetr.DECODER_LAYERS)
        return {
            "backbone": backbone,
            "neck": neck,
            "head": QueryHead(cfg),
            "auxiliary": AuxiliaryHeads(cfg, neck.names) if codetr.AUXILIARY_HEADS else None,
            "assigner": HungarianAssigner(codetr.CLASS_COST, codetr.L1_COST, codetr.GIOU_COST),
            "query_losses": build_query_losses(cfg, groups),
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """See :meth:`DenseDetector.forward`."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        maps = self.neck([features[name] for name in self.head_in_features])
        memory = self.head.encode(maps, images.image_sizes, images.tensor.shape[-2:])
        proposed, usable = self.head.propose(memory)
        predictions = self.head.decode_best(proposed, usable, memory)
        if not self.training:
            found = self.detections(predictions, images.image_sizes)
            sizes = zip(found, batched_inputs, images.image_sizes, strict=True)
            return [
                {
                    "instances": detector_postprocess(
                        each, given.get("height", size[0]), given.get("width", size[1])
                    )
                }
                for each, given, size in sizes
            ]
        gt_instances = [given["instances"].to(self.device) for given in batched_inputs]
        objects = objects_of(gt_instances)
        losses = self.query_losses("decoder", predictions, self.assigner(predictions, objects))
        # A token says how much it looks like any object: for the encoder all have the first class.
        objects = [each._replace(classes=torch.zeros_like(each.classes)) for each in objects]
        assigned = self.assigner(proposed, objects, usable)
        losses |= self.query_losses("encoder", proposed, assigned)
        if self.auxiliary is not None:
            losses |= self._auxiliary_losses(images, memory, gt_instances)
        return losses

    def _auxiliary_losses(self, images, memory, gt_instances) -> dict[str, Tensor]:
        features = self.auxiliary.features(memory.levels.maps(memory.tokens))
        losses, candidates = self.auxiliary(images, features, gt_instances)
        layers = len(self.head.decoder_layers)
        for name in self.auxiliary.embeddings:
            queries, assigned = self.auxiliary.queries(
                name, candidates[name], features, images.image_sizes, layers
            )
            predictions = self.head.decode(*queries, memory)
            losses |= self.query_losses(f"{name}_queries", predictions, assigned)
        return losses

    def detections(
        self, predictions: Predictions, image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """The `max_detections` best of all queries x classes of each image, by the last layer.

        There is no suppression of boxes that overlap.
        """
        logits, boxes = predictions.logits[-1], predictions.boxes[-1]
        num_classes = logits.shape[2]
        scores = logits.to(boxes.dtype).sigmoid().flatten(1)
        scores, indices = scores.topk(min(self.max_detections, scores.shape[1]), dim=1)
        found = []
        for row, (height, width) in enumerate(image_sizes):
            corners = box_convert(boxes[row, indices[row] // num_classes], "cxcywh", "xyxy")
            instances = Instances((height, width))
            instances.pred_boxes = Boxes(corners * corners.new_tensor([width, height] * 2))
            instances.scores = scores[row]
            instances.pred_classes = indices[row] % num_classes
            found.append(instances)
        return found


def _check(cfg) -> None:
    codetr = cfg.MODEL.CODETR
    unknown = [name for name in codetr.AUXILIARY_HEADS if name not in AUXILIARY_HEADS]
    if unknown:
        raise BucketRankError(
            f"MODEL.CODETR.AUXILIARY_HEADS has {unknown[0]!r}; there are "
            f"{', '.join(AUXILIARY_HEADS)}."
        )
    if codetr.HIDDEN_DIM % 32 or codetr.HIDDEN_DIM % codetr.NUM_HEADS:
        raise BucketRankError(
            f"MODEL.CODETR.HIDDEN_DIM is {codetr.HIDDEN_DIM}; it must be a multiple of 32 and of "
            f"NUM_HEADS, {codetr.NUM_HEADS}."
        )
