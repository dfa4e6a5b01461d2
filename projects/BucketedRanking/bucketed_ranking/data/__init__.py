"""Data sets: the embedded one, the registry of names, checks and cleaning of COCO-format JSON.

Only ``catalog`` needs Detectron2; everything else imports without it.
"""
