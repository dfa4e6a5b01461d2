"""Files of Co-DETR's weights: from MMDetection's layout to this one, and back."""

from pathlib import Path

import torch
from detectron2.modeling import build_model

from ..config import SCORE_LOSS
from ..data.files import atomic_file
from ..errors import BucketRankError
from ..modeling.codetr import mmdetection
from . import setup
from .checkpoint import read_tensors

DIRECTIONS = {"detectron2": mmdetection.to_detectron2, "mmdetection": mmdetection.to_mmdetection}
_CONTENT = {"detectron2": "model", "mmdetection": "state_dict"}


def convert(
    source: Path, output: Path, *, config: str, to: str = "detectron2"
) -> list[mmdetection.Tensors]:
    """Write the weights of `source` that fit in the other layout, and say what became of each.

    Args:
        source: a checkpoint of MMDetection's Co-Deformable-DETR, or of ours.
        config: of the same detector, see `zoo.find_config`; its loss follows from the weights.
        to: one of DIRECTIONS.

    Raises:
        BucketRankError: `source` is no checkpoint of tensors, or nothing in it is of the detector;
            the config is of another; or there is an `output` already.
    """
    if output.exists():
        raise BucketRankError(f"There is a file {output} already; choose another with --output.")
    weights = read_tensors(str(source))
    loss = SCORE_LOSS if mmdetection.is_score_based(weights) else None
    cfg = setup.load_config(config, loss=loss, device="cpu")
    if cfg.MODEL.META_ARCHITECTURE != "CoDETR":
        raise BucketRankError(
            f"The config {config} is not of Co-DETR, whose weights alone can be converted; take "
            "one such as co_deformable_detr_R_50_1x."
        )
    model = build_model(cfg).state_dict()
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    counts = len(anchors.SIZES[0]), len(anchors.ASPECT_RATIOS[0])
    converted, report = DIRECTIONS[to](weights, model, counts)
    # Swin's tensors have the same names in both.
    renamed = (row for row in report if row.mmdetection != row.detectron2)
    if not any(row.status == mmdetection.MATCHED for row in renamed):
        other = next(name for name in DIRECTIONS if name != to)
        raise BucketRankError(
            f"No tensor of {source} is one of {config} in the layout of {other}: it is of another "
            "detector, or --to names the layout that it has already."
        )
    with atomic_file(output) as file:
        torch.save({_CONTENT[to]: converted}, file)
    return report
