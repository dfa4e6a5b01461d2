"""Detectron2 heads and meta-architectures with ranking losses; importing registers them."""

from . import atss, backbones, codetr, matching, paa, retinanet, roi_heads, rpn, timm_backbones

__all__ = [
    "atss", "backbones", "codetr", "matching", "paa", "retinanet", "roi_heads", "rpn",
    "timm_backbones",
]  # fmt: skip

matching.bound_matching()
