"""What training pictures go through at random before a detector sees them."""

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation

_COLOUR_RANGE = (0.7, 1.3)
_SMALLEST_CROP = (0.5, 0.5)
# DETR (ECCV 2020): shortest sides before the cut, and the sides of what is cut out.
_DETR_SIZES, _DETR_CROP = (400, 500, 600), (384, 600)


def training_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Detectron2's own (resizing, flipping, INPUT.CROP), and with INPUT.STRONG_AUGMENTATION more.

    These are Detectron2's transforms too: every second picture is cut to a part of at least half
    its width and height, which the resizing after it enlarges, and every picture's brightness,
    contrast and saturation change by up to 30 %. INPUT.DETR_CROP is DETR's.
    """
    augmentations = build_augmentation(cfg, is_train=True)
    if cfg.INPUT.DETR_CROP:
        scale = T.ResizeShortestEdge(_DETR_SIZES, sample_style="choice")
        cut = T.AugmentationList([scale, T.RandomCrop("absolute_range", _DETR_CROP)])
        augmentations.insert(0, T.RandomApply(cut, prob=0.5))
    if cfg.INPUT.CROP.ENABLED:
        augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    if cfg.INPUT.STRONG_AUGMENTATION:
        crop = T.RandomApply(T.RandomCrop("relative_range", _SMALLEST_CROP), prob=0.5)
        colour = [T.RandomBrightness, T.RandomContrast, T.RandomSaturation]
        augmentations = [crop, *augmentations, *(change(*_COLOUR_RANGE) for change in colour)]
    return augmentations


def crops(cfg: CfgNode) -> bool:
    """Whether a crop may cut objects, whose boxes then follow from what is left of their masks."""
    return cfg.INPUT.CROP.ENABLED or cfg.INPUT.STRONG_AUGMENTATION or cfg.INPUT.DETR_CROP
