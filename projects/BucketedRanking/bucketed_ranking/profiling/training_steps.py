"""What a training step of a whole detector costs, on made-up pictures. Needs detectron2."""

import itertools
import math
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks

from ..engine.hooks import LossTimer, SeedEachIteration, StepTimer
from ..engine.trainer import Trainer

# COCO has 7.3 objects a picture; their sizes here are spread evenly over the octaves.
_OBJECTS = 7
_SMALLEST, _LARGEST = 16, 512
_MASK_CORNERS = 12


@dataclass(frozen=True)
class StepCost:
    """Of one iteration, without reading pictures.

    Attributes:
        seconds: median.
        loss_ms: milliseconds in the losses of all heads, forward and backward; see `LossTimer`.
        classification_loss_ms: in the classification losses alone.
        peak_memory_bytes: that tensors took on the GPU; None on the CPU.
    """

    seconds: float
    loss_ms: float | None
    classification_loss_ms: float | None
    peak_memory_bytes: int | None


def measure_training_steps(
    cfg: CfgNode,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    steps: int = 10,
    warm_up: int = 3,
    seed: int = 0,
) -> StepCost:
    """Time training steps of a detector with random weights, which stay as they are.

    Args:
        cfg: a full config.
        image_size: height and width in pixels.
        steps: that count, after `warm_up`.
    """
    torch.manual_seed(seed)
    cfg = cfg.clone()
    # The optimiser does all its work, but the weights, and with them the losses' input, stay.
    cfg.SOLVER.BASE_LR = 0.0
    device = cfg.MODEL.DEVICE
    model = build_model(cfg).train()
    batch = make_batch(cfg, batch_size, image_size, seed)
    trainer = SimpleTrainer(model, itertools.repeat(batch), Trainer.build_optimizer(cfg, model))
    timer = StepTimer(device, warm_up)
    loss_timer = LossTimer(model, device, period=1, warm_up=warm_up)
    trainer.register_hooks([timer, SeedEachIteration(seed), loss_timer])
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    trainer.train(0, warm_up + steps)
    return StepCost(
        timer.median_seconds(),
        loss_timer.median_milliseconds(),
        loss_timer.median_classification_milliseconds(),
        torch.cuda.max_memory_allocated(device) if on_gpu else None,
    )


def make_batch(cfg: CfgNode, batch_size: int, image_size: tuple[int, int], seed: int) -> list[dict]:
    """Pictures of noise with objects anywhere, in Detectron2's format for training."""
    generator = torch.Generator().manual_seed(seed)
    return [_make_input(cfg, image_size, generator) for _ in range(batch_size)]


def _make_input(cfg: CfgNode, image_size: tuple[int, int], generator: torch.Generator) -> dict:
    height, width = image_size
    extent = torch.tensor([width, height])
    octaves = math.log2(_LARGEST / _SMALLEST)
    sizes = _SMALLEST * 2 ** (octaves * torch.rand(_OBJECTS, 2, generator=generator))
    sizes = sizes.minimum(0.9 * extent)
    corners = torch.rand(_OBJECTS, 2, generator=generator) * (extent - sizes)
    instances = Instances(image_size)
    instances.gt_boxes = Boxes(torch.cat([corners, corners + sizes], dim=1))
    instances.gt_classes = torch.randint(0, _num_classes(cfg), (_OBJECTS,), generator=generator)
    if cfg.MODEL.MASK_ON:
        instances.gt_masks = PolygonMasks(
            [[_ellipse(c + s / 2, s / 2)] for c, s in zip(corners, sizes, strict=True)]
        )
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


def _num_classes(cfg: CfgNode) -> int:
    return min(cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES)


def _ellipse(centre: torch.Tensor, radii: torch.Tensor):
    angles = torch.linspace(0, 2 * math.pi, _MASK_CORNERS + 1)[:-1]
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    return (centre + radii * circle).flatten().double().numpy()
