"""Detectron2 heads and meta-architectures with ranking losses; importing registers them."""

from . import atss, backbones, paa, retinanet, roi_heads, rpn, timm_backbones

__all__ = ["atss", "backbones", "paa", "retinanet", "roi_heads", "rpn", "timm_backbones"]
