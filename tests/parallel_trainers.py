"""Training steps with images that are named, some of them not finite, in one process or two."""

from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from bucketed_ranking.engine.step import NonFiniteError, TrainingStep
from bucketed_ranking.engine.trainer import Trainer
from bucketed_ranking.modeling.ranking import LOSS_NAMES
from tests.small_detectors import narrow_config, random_batch


def named_batch(*names: str) -> list[dict]:
    """An image with two objects for each name."""
    images = [random_batch((2,), seed=sum(map(ord, name)))[0] for name in names]
    return [
        {**image, "file_name": f"{name}.jpg"} for image, name in zip(images, names, strict=True)
    ]


def bad_image(name: str) -> dict:
    (image,) = named_batch(name)
    return {**image, "image": image["image"] * torch.nan}


def build_step(
    output: Path, batches: list[list[dict]], detector: str, loss: str, *options: str
) -> TrainingStep:
    cfg = narrow_config(detector, loss, *options)
    cfg.OUTPUT_DIR, cfg.SEED = str(output), 1
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    wrapped = model
    if dist.is_initialized():  # as Detectron2 does it
        wrapped = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    return TrainingStep(cfg, wrapped, batches, optimizer)


def step_in_parallel(rank: int, output: str, loss: str) -> dict:
    """Steps of one of two processes, in two parts each, until three in a row are bad.

    Step 1 has a bad image on process 0, and the three from 3 on on one or the other.
    """
    batches = []
    for iteration in range(7):
        images = named_batch(*(f"{iteration}-{rank + 2 * part}" for part in range(2)))
        if (iteration, rank) in {(1, 0), (3, 1), (4, 0), (5, 1)}:
            images[1] = bad_image("bad")
        batches.append(images)
    scope = ["MODEL.RANKING.SCOPE", "global"] if loss in LOSS_NAMES else []
    how = ["SOLVER.ACCUMULATE", "2", "SOLVER.ON_NAN", "skip", "SOLVER.MAX_SKIPPED", "3"]
    step = build_step(Path(output), batches, "retinanet_tiny", loss, *how, *scope)
    with EventStorage() as storage:
        try:
            for step.iter in range(len(batches)):
                storage.iter = step.iter
                step.run_step()
        except NonFiniteError:
            stopped = step.iter
    weights = [parameter.sum().item() for parameter in step.model.parameters()]
    return {"weights": weights, "skipped": step.skipped, "stopped": stopped}
