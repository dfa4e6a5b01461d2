"""Co-DETR and Deformable DETR; importing it registers them."""

from . import detector

__all__ = ["detector"]
