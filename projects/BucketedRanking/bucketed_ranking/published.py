"""What the paper of the bucketed losses reports: to be compared with, never measured here.

Yavuz et al., "Bucketed Ranking-based Losses for Efficient Training of Object Detectors", ECCV 2024
(arXiv 2407.14204). Times are seconds per iteration on 4 A100 with a batch of 16, each ratio the
paper's own. Where the paper and its repository differ, the paper's number stands.
"""

from dataclasses import dataclass

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
    loss: str
    metric: str
    ap: float | None
    ap50: float | None
    ap75: float | None
    seconds_per_iteration: float | None
    detector: str
    backbone: str
    epochs: int
    dataset: str
    speed_up: float | None = None
    options: tuple[str, ...] = ()


# Test score thresholds of two-stage detectors, for speed (RS Loss: costs about 0.01 AP on COCO).
_COCO_THRESHOLD = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.4")
_LVIS_THRESHOLD = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.6")


def _pair(
    config: str,
    detector: str,
    backbone: str,
    unbucketed: tuple[str, float | None, float | None],
    bucketed: tuple[str, float | None, float | None],
    speed_up: float | None,
    *,
    metric: str = "bbox",
    epochs: int = 12,
    dataset: str = "COCO",
    options: tuple[str, ...] = (),
) -> list[PublishedRow]:
    """A row of the paper's tables: (loss, AP, seconds per iteration) without and with buckets."""
    detector_and_data = (detector, backbone, epochs, dataset)
    return [
        PublishedRow(
            config, loss, metric, ap, None, None, seconds, *detector_and_data, gain, options
        )
        for (loss, ap, seconds), gain in ((unbucketed, None), (bucketed, speed_up))
    ]


PUBLISHED: tuple[PublishedRow, ...] = (
    *_pair(
        "faster_rcnn_R_50_FPN_1x", "Faster R-CNN", "R-50",
        ("rs", 39.4, 0.50), ("brs", 39.5, 0.17), 3.0, options=_COCO_THRESHOLD,
    ),
    *_pair(
        "faster_rcnn_R_101_DCN_FPN_3x", "Faster R-CNN", "R-101-DCN",
        ("rs", 47.3, 0.91), ("brs", 47.7, 0.47), 2.0, epochs=36, options=_COCO_THRESHOLD,
    ),
    *_pair(
        "cascade_rcnn_R_50_FPN_1x", "Cascade R-CNN", "R-50",
        ("rs", 41.1, 1.28), ("brs", 41.1, 0.24), 5.3, options=_COCO_THRESHOLD,
    ),
    *_pair(
        "atss_R_50_FPN_1x", "ATSS", "R-50",
        ("ap", 38.3, 0.34), ("bap", 38.5, 0.18), 1.9,
    ),
    *_pair(
        "atss_R_50_FPN_1x", "ATSS", "R-50",
        ("rs", 39.8, 0.36), ("brs", 39.8, 0.15), 2.4,
    ),
    *_pair(
        "paa_R_50_FPN_1x", "PAA", "R-50",
        ("ap", 37.3, None), ("bap", 37.2, None), 1.5,
    ),
    *_pair(
        "paa_R_50_FPN_1x", "PAA", "R-50",
        ("rs", 40.8, None), ("brs", 40.8, 0.36), 1.9,
    ),
    *_pair(
        "mask_rcnn_R_50_FPN_1x", "Mask R-CNN", "R-50",
        ("rs", 36.3, 0.68), ("brs", 36.2, 0.29), 2.3, metric="segm", options=_COCO_THRESHOLD,
    ),
    *_pair(
        "mask_rcnn_R_101_FPN_3x", "Mask R-CNN", "R-101",
        ("rs", 40.2, 0.71), ("brs", 40.3, 0.33), 2.2, metric="segm", epochs=36,
        options=_COCO_THRESHOLD,
    ),
    *_pair(
        "mask_rcnn_R_50_FPN", "Mask R-CNN", "R-50",
        ("rs", 38.2, 0.43), ("brs", 38.5, 0.19), 2.3, metric="segm", dataset="Cityscapes",
    ),
    *_pair(
        "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", "Mask R-CNN", "R-50",
        ("rs", 25.6, 0.87), ("brs", 25.8, 0.35), 2.5, metric="segm", dataset="LVIS v1",
        options=_LVIS_THRESHOLD,
    ),
    # The score-based Co-DETR; BRS-DETR is the paper's name for its bucketed form.
    PublishedRow(
        "codetr_R_50_1x", "score", "bbox", 49.3, None, None, None, "Co-DETR", "R-50", 12, "COCO"
    ),
    PublishedRow(
        "codetr_R_50_1x", "rs", "bbox", None, None, None, 4.14, "Co-DETR", "R-50", 12, "COCO"
    ),
    PublishedRow(
        "codetr_R_50_1x", "brs", "bbox", 50.1, 67.4, 54.6, 0.69, "Co-DETR", "R-50", 12, "COCO", 6.0
    ),
    *_pair(
        "codetr_swin_t_1x", "Co-DETR", "Swin-T",
        ("score", 51.7, None), ("brs", 52.3, None), None,
    ),
    *_pair(
        "codetr_swin_l_1x", "Co-DETR", "Swin-L",
        ("score", 56.9, None), ("brs", 57.2, None), None,
    ),
)  # fmt: skip


def published(config: str, loss: str) -> PublishedRow | None:
    """The paper's row of a config with a loss; None where it reports none."""
    return next((row for row in PUBLISHED if (row.config, row.loss) == (config, loss)), None)
