"""Training steps on named images, some of them not finite, in one process or two."""

from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from bucketed_ranking.engine.step import NonFiniteError, TrainingStep
from bucketed_ranking.engine.trainer import Trainer
from tests.small_detectors import narrow_config, random_batch

LOSSES = ("rs-exact", "score")


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


def train_in_parallel(rank: int, output: str) -> dict[str, dict]:
    """:func:`train_until_it_stops` on one of two processes, by loss."""
    batches = [part[rank] for part in parallel_batches()]
    return {loss: train_until_it_stops(f"{output}/{loss}", batches, loss) for loss in LOSSES}


def parallel_batches() -> list[tuple[list[dict], list[dict]]]:
    """Two images for each of two processes, for seven steps.

    One of step 1 is bad, and one of each step from 3 on, on process 0 or 1.
    """
    batches = []
    for number in range(7):
        parts = [named_batch(f"{number}-{rank}", f"{number}-{rank + 2}") for rank in range(2)]
        if number == 1 or number > 2:
            parts[number % 2 == 0][1] = bad_image("bad")
        batches.append((parts[0], parts[1]))
    return batches


def train_until_it_stops(output: str, batches: list[list[dict]], loss: str) -> dict:
    """Steps in two parts each, until three in a row are bad."""
    how = [
        "MODEL.RESNETS.NORM", "LN", "MODEL.FPN.NORM", "LN", "SOLVER.ACCUMULATE", "2",
        "SOLVER.ON_NAN", "skip", "SOLVER.MAX_SKIPPED", "3",
        "MODEL.RANKING.SCOPE", "global", "SOLVER.BASE_LR", "0.001", "SOLVER.EMA_DECAY", "0.9999",
    ]  # fmt: skip
    step = build_step(Path(output), batches, "retinanet_tiny", loss, *how)
    with EventStorage() as storage:
        try:
            for step.iter in range(len(batches)):
                storage.iter = step.iter
                step.run_step()
        except NonFiniteError:
            stopped = step.iter
    models = {"weights": step.model, "average": step.evaluated}
    weights = {
        name: torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        for name, model in models.items()
    }
    return {**weights, "skipped": step.skipped, "stopped": stopped}
