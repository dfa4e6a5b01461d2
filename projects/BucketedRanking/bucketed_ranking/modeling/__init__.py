"""Detectron2 heads and meta-architectures with ranking losses; importing registers them."""

from .backbones import build_small_resnet_fpn_backbone
from .retinanet import RankingRetinaNet
from .roi_heads import RankingFastRCNNOutputLayers, RankingROIHeads
from .rpn import RankingRPN

__all__ = [
    "RankingFastRCNNOutputLayers",
    "RankingROIHeads",
    "RankingRPN",
    "RankingRetinaNet",
    "build_small_resnet_fpn_backbone",
]
