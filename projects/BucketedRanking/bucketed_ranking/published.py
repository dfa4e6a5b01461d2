"""What the paper of the bucketed losses reports: to be compared with, never measured here.

Yavuz et al., "Bucketed Ranking-based Losses for Efficient Training of Object Detectors", ECCV 2024
(arXiv 2407.14204). Times are seconds per iteration on 4 A100 with a batch of 16, each ratio the
paper's own. Where the paper and its repository differ, the paper's number stands.
"""

from dataclasses import dataclass
from typing import Any

TASKS = {"bbox": "box", "segm": "mask"}
"""What AP is of, by Detectron2's names."""

IMAGES_PER_RANKING = 4
"""A batch of 16 on 4 GPUs: each process ranks its own images."""


@dataclass(frozen=True)
class PublishedRow:
    """One detector with one loss; what the paper does not report is None.

    ``config`` is the name of the shipped config of the same detector, schedule and data; ``metric``
    is the task that AP is of, "bbox" or "segm"; APs are in percent, on the validation set;
    ``speed_up`` says how many times less time a bucketed loss takes than the unbucketed one;
    ``options`` are config keys and values that the paper has beside the recipe of our config.
    """

    config: str
    detector: str
    backbone: str
    loss: str
    ap: float | None
    seconds_per_iteration: float | None
    speed_up: float | None
    metric: str = "bbox"
    epochs: int = 12
    dataset: str = "COCO"
    options: tuple[str, ...] = ()
    ap50: float | None = None
    ap75: float | None = None


# Test score thresholds of two-stage detectors, for speed (RS Loss: costs about 0.01 AP on COCO).
_COCO_THRESHOLD = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.4")
_LVIS_THRESHOLD = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.6")


def _rows(
    config: str,
    detector: str,
    backbone: str,
    *measured: tuple[str, float | None, float | None, float | None],
    **others: Any,
) -> list[PublishedRow]:
    """Rows of one detector, each measured: loss, AP, seconds per iteration, speed-up."""
    return [PublishedRow(config, detector, backbone, *each, **others) for each in measured]


PUBLISHED: tuple[PublishedRow, ...] = (
    *_rows(
        "faster_rcnn_R_50_FPN_1x", "Faster R-CNN", "R-50",
        ("rs", 39.4, 0.50, None), ("brs", 39.5, 0.17, 3.0), options=_COCO_THRESHOLD,
    ),
    *_rows(
        "faster_rcnn_R_101_DCN_FPN_3x", "Faster R-CNN", "R-101-DCN",
        ("rs", 47.3, 0.91, None), ("brs", 47.7, 0.47, 2.0), epochs=36, options=_COCO_THRESHOLD,
    ),
    *_rows(
        "cascade_rcnn_R_50_FPN_1x", "Cascade R-CNN", "R-50",
        ("rs", 41.1, 1.28, None), ("brs", 41.1, 0.24, 5.3), options=_COCO_THRESHOLD,
    ),
    *_rows(
        "atss_R_50_FPN_1x", "ATSS", "R-50",
        ("ap", 38.3, 0.34, None), ("bap", 38.5, 0.18, 1.9),
        ("rs", 39.8, 0.36, None), ("brs", 39.8, 0.15, 2.4),
    ),
    *_rows(
        "paa_R_50_FPN_1x", "PAA", "R-50",
        ("ap", 37.3, None, None), ("bap", 37.2, None, 1.5),
        ("rs", 40.8, None, None), ("brs", 40.8, 0.36, 1.9),
    ),
    *_rows(
        "mask_rcnn_R_50_FPN_1x", "Mask R-CNN", "R-50",
        ("rs", 36.3, 0.68, None), ("brs", 36.2, 0.29, 2.3), metric="segm", options=_COCO_THRESHOLD,
    ),
    *_rows(
        "mask_rcnn_R_101_FPN_3x", "Mask R-CNN", "R-101",
        ("rs", 40.2, 0.71, None), ("brs", 40.3, 0.33, 2.2), metric="segm", epochs=36,
        options=_COCO_THRESHOLD,
    ),
    *_rows(
        "mask_rcnn_R_50_FPN", "Mask R-CNN", "R-50",
        ("rs", 38.2, 0.43, None), ("brs", 38.5, 0.19, 2.3), metric="segm", dataset="Cityscapes",
    ),
    *_rows(
        "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", "Mask R-CNN", "R-50",
        ("rs", 25.6, 0.87, None), ("brs", 25.8, 0.35, 2.5), metric="segm", dataset="LVIS v1",
        options=_LVIS_THRESHOLD,
    ),
    # The score-based Co-DETR; BRS-DETR is the paper's name for its bucketed form.
    *_rows(
        "co_deformable_detr_R_50_1x", "Co-DETR", "R-50",
        ("score", 49.3, None, None), ("rs", None, 4.14, None),
    ),
    *_rows(
        "co_deformable_detr_R_50_1x", "Co-DETR", "R-50",
        ("brs", 50.1, 0.69, 6.0), ap50=67.4, ap75=54.6,
    ),
    *_rows(
        "co_deformable_detr_swin_t_1x", "Co-DETR", "Swin-T",
        ("score", 51.7, None, None), ("brs", 52.3, None, None),
    ),
    *_rows(
        "co_deformable_detr_swin_l_1x", "Co-DETR", "Swin-L",
        ("score", 56.9, None, None), ("brs", 57.2, None, None),
    ),
)  # fmt: skip


def published(config: str, loss: str) -> PublishedRow | None:
    """The paper's row of a config with a loss; None where it reports none."""
    return next((row for row in PUBLISHED if (row.config, row.loss) == (config, loss)), None)
