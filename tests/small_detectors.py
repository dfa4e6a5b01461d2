"""Detectors and batches small enough to build and step in a fraction of a second."""

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances, PolygonMasks

from bucketed_ranking.engine.setup import load_config, set_num_classes

NUM_CLASSES = 4
DETECTORS = (
    "retinanet_tiny",
    "atss_tiny",
    "paa_tiny",
    "faster_rcnn_tiny",
    "mask_rcnn_tiny",
    "cascade_rcnn_tiny",
    "cascade_mask_rcnn_tiny",
    "co_deformable_detr_tiny",
)

# The shipped tiny detectors with a fraction of their channels.
NARROW = [
    "MODEL.SMALL_RESNET.CHANNELS", "[8, 12, 16, 20]",
    "MODEL.FPN.OUT_CHANNELS", "32",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "16",
    "MODEL.CODETR.HIDDEN_DIM", "32",
    "MODEL.CODETR.FEEDFORWARD_DIM", "32",
    "MODEL.CODETR.ENCODER_LAYERS", "1",
    "MODEL.CODETR.DECODER_LAYERS", "2",
    "MODEL.CODETR.NUM_QUERIES", "20",
    "INPUT.MIN_SIZE_TRAIN", "(64,)",
    "INPUT.MIN_SIZE_TEST", "64",
    "SOLVER.IMS_PER_BATCH", "2",
    "DATALOADER.NUM_WORKERS", "0",
]  # fmt: skip

# Untrained scores lie below the usual thresholds.
ALL_SCORES = [
    "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
]  # fmt: skip


def narrow_config(name: str, loss: str, *options: str) -> CfgNode:
    cfg = load_config(name, loss=loss, options=[*NARROW, *options], device="cpu")
    set_num_classes(cfg, NUM_CLASSES)
    return cfg


def random_batch(objects: tuple[int, ...] = (3, 2), seed: int = 0) -> list[dict]:
    """Images of different sizes with so many objects each; their masks are triangles."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for index, count in enumerate(objects):
        height, width = 96 + 16 * index, 128 - 16 * index
        corners = torch.rand(count, 2, generator=generator) * 40
        sizes = 24 + 30 * torch.rand(count, 2, generator=generator)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat([corners, corners + sizes], dim=1))
        instances.gt_masks = PolygonMasks(
            [[[x0, y0, x1, y0, x0, y1]] for x0, y0, x1, y1 in instances.gt_boxes.tensor.tolist()]
        )
        instances.gt_classes = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
        image = torch.randint(0, 256, (3, height, width), generator=generator).float()
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch
