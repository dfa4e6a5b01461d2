"""Detectron2 heads and meta-architectures with ranking losses; importing registers them."""

from .atss import ATSS, RankingATSS
from .backbones import (
    build_deform_resnet_fpn_backbone,
    build_resnet_fpn_p6p7_from_p5_backbone,
    build_small_resnet_fpn_backbone,
    build_swin_backbone,
    build_swin_fpn_backbone,
)
from .paa import PAA, RankingPAA
from .retinanet import RankingRetinaNet
from .roi_heads import (
    RankingCascadeROIHeads,
    RankingFastRCNNOutputLayers,
    RankingMaskHead,
    RankingROIHeads,
)
from .rpn import RankingRPN

__all__ = [
    "ATSS",
    "PAA",
    "RankingATSS",
    "RankingCascadeROIHeads",
    "RankingFastRCNNOutputLayers",
    "RankingMaskHead",
    "RankingPAA",
    "RankingROIHeads",
    "RankingRPN",
    "RankingRetinaNet",
    "build_deform_resnet_fpn_backbone",
    "build_resnet_fpn_p6p7_from_p5_backbone",
    "build_small_resnet_fpn_backbone",
    "build_swin_backbone",
    "build_swin_fpn_backbone",
]
