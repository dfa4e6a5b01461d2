"""Data sets: their registry, checks and cleaning of COCO-format JSON, drawing, the embedded one.

Only ``catalog`` needs Detectron2, and only ``catalog`` and ``draw`` need torch.
"""
