"""Detectron2 heads and meta-architectures with ranking losses; importing registers them."""

# ruff: noqa: F401

from . import backbones
from .atss import ATSS, RankingATSS
from .paa import PAA, RankingPAA
from .retinanet import RankingRetinaNet
from .roi_heads import (
    RankingCascadeROIHeads,
    RankingFastRCNNOutputLayers,
    RankingMaskHead,
    RankingROIHeads,
)
from .rpn import RankingRPN
