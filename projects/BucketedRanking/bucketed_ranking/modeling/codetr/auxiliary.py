"""Co-DETR's auxiliary heads: this project's own detectors on the encoder's output, and the queries
that their positives make. Training alone needs them."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..quality import QualityRetinaNet
from .assignment import Assigned, normalised_boxes
from .extra_queries import Candidates, ExtraQueryEmbedding, assigned_to, choose_queries


@BACKBONE_REGISTRY.register()
class GivenFeatures(Backbone):
    """In place of a backbone, in a detector that is handed its features: MODEL.RETINANET's, of
    MODEL.CODETR.HIDDEN_DIM channels, with strides by their names."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec):
        super().__init__()
        self._out_features = list(cfg.MODEL.RETINANET.IN_FEATURES)
        self._out_feature_strides = {name: 2 ** int(name[1:]) for name in self._out_features}
        self._out_feature_channels = dict.fromkeys(self._out_features, cfg.MODEL.CODETR.HIDDEN_DIM)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


class ROIAuxiliary(nn.Module):
    """RPN and Faster R-CNN's head, as MODEL.PROPOSAL_GENERATOR and MODEL.ROI_HEADS name them."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]):
        super().__init__()
        self.proposal_generator = build_proposal_generator(cfg, input_shape)
        self.roi_heads = build_roi_heads(cfg, input_shape)

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances]
    ) -> tuple[dict[str, Tensor], list[Candidates]]:
        proposals, losses = self.proposal_generator(images, features, gt_instances)
        proposals, box_losses = self.roi_heads(images, features, proposals, gt_instances)
        for name, value in box_losses.items():
            losses[name.replace("_", "_roi_", 1)] = value
        candidates = []
        for each in proposals:
            targets = each.gt_boxes if each.has("gt_boxes") else each.proposal_boxes
            candidates.append(
                Candidates(each.proposal_boxes.tensor, each.gt_classes, targets.tensor)
            )
        return losses, candidates

    def content(self, features: dict[str, Tensor], boxes: Tensor, rows: Tensor) -> Tensor:
        """The mean of each region [N, Q, 4], pooled as the head pools it: [N, Q, dim]."""
        heads = self.roi_heads
        pooled = heads.box_pooler(
            [features[name] for name in heads.box_in_features], [Boxes(each) for each in boxes]
        )
        return pooled.mean(dim=(2, 3)).unflatten(0, boxes.shape[:2])


class ATSSAuxiliary(nn.Module):
    """The ATSS that MODEL.CODETR.ATSS_NAME names, with anchors of its own."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]):
        super().__init__()
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.BACKBONE.NAME = "GivenFeatures"
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = cfg.MODEL.CODETR.ATSS_ANCHOR_SIZES
        cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
        self.atss: QualityRetinaNet = META_ARCH_REGISTRY.get(cfg.MODEL.CODETR.ATSS_NAME)(cfg)

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances]
    ) -> tuple[dict[str, Tensor], list[Candidates]]:
        maps = [features[name] for name in self.atss.head_in_features]
        losses, anchors, labels, targets = self.atss.losses_and_targets(
            maps, self.atss.head(maps), gt_instances
        )
        boxes = Boxes.cat(anchors).tensor
        candidates = [Candidates(boxes, *each) for each in zip(labels, targets, strict=True)]
        return {k.replace("_", "_atss_", 1): v for k, v in losses.items()}, candidates

    def content(self, features: dict[str, Tensor], boxes: Tensor, rows: Tensor) -> Tensor:
        """The token at the location of each anchor, by its row [N, Q]: [N, Q, dim]."""
        maps = [features[name].flatten(2) for name in self.atss.head_in_features]
        tokens = torch.cat(maps, dim=2).transpose(1, 2)
        locations = rows // self.atss.anchor_generator.num_anchors[0]
        return tokens.gather(1, locations.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


AUXILIARY_HEADS = {"roi": ROIAuxiliary, "atss": ATSSAuxiliary}
"""What MODEL.CODETR.AUXILIARY_HEADS may name."""


class AuxiliaryHeads(nn.Module):
    """The heads that MODEL.CODETR.AUXILIARY_HEADS names, on one more level than the encoder has.

    Args:
        names: of the encoder's levels, such as "p3" for stride 8.
    """

    def __init__(self, cfg: CfgNode, names: list[str]):
        super().__init__()
        dim = cfg.MODEL.CODETR.HIDDEN_DIM
        self.downsample = nn.Sequential(
            nn.Conv2d(dim, dim, 3, stride=2, padding=1), nn.GroupNorm(32, dim)
        )
        self.names = [*names, f"p{int(names[-1][1:]) + 1}"]
        shapes = {name: ShapeSpec(channels=dim, stride=2 ** int(name[1:])) for name in self.names}
        self.heads = nn.ModuleDict(
            {name: AUXILIARY_HEADS[name](cfg, shapes) for name in cfg.MODEL.CODETR.AUXILIARY_HEADS}
        )
        self.weight = cfg.MODEL.CODETR.AUXILIARY_LOSS_WEIGHT
        self.num_classes = cfg.MODEL.CODETR.NUM_CLASSES
        self.max_queries = cfg.MODEL.CODETR.MAX_EXTRA_QUERIES
        self.embeddings = nn.ModuleDict(
            {name: ExtraQueryEmbedding(dim) for name in self.heads if self.max_queries}
        )

    def features(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """What the heads see of the encoder's output maps [N, dim, H, W]."""
        return dict(zip(self.names, [*maps, self.downsample(maps[-1])], strict=True))

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances]
    ) -> tuple[dict[str, Tensor], dict[str, list[Candidates]]]:
        """The losses of all heads, weighted, and what each has made of every image."""
        losses, candidates = {}, {}
        for name, head in self.heads.items():
            found, candidates[name] = head(images, features, gt_instances)
            losses |= {key: self.weight * value for key, value in found.items()}
        return losses, candidates

    def queries(
        self,
        name: str,
        candidates: list[Candidates],
        features: dict[str, Tensor],
        image_sizes: list[tuple[int, int]],
        layers: int,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Assigned]:
        """The extra queries of the head `name`: content, position and normalised boxes, [N, Q, dim]
        twice and [N, Q, 4], and what each of the decoder's layers is to predict for them."""
        chosen = choose_queries(candidates, self.num_classes, self.max_queries)
        seen = self.heads[name].content(features, chosen.boxes, chosen.rows)
        boxes = torch.stack(
            [normalised_boxes(*each) for each in zip(chosen.boxes, image_sizes, strict=True)]
        ).to(torch.promote_types(seen.dtype, torch.float32))
        content, position = self.embeddings[name](boxes, seen)
        assigned = assigned_to(chosen, image_sizes, self.num_classes, layers)
        return (content, position, boxes), assigned
