"""Running a saved step again, to see where it stops being finite."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ..config import ranking_scope
from ..environment import choose_device
from ..errors import BucketRankError
from .failed_step import as_image, load_step
from .hooks import seed_iteration
from .step import (
    ForwardGuard,
    accumulate_gradients,
    build_grad_scaler,
    mean_losses,
    non_finite_gradients,
)


class Replay(NamedTuple):
    """What came of a step that was run again."""

    iteration: int
    images: list[str]
    recorded: dict[str, float]
    """The losses that training saw, means over its processes."""
    losses: dict[str, float]
    weights: list[str]
    """Parameters and buffers that are not finite before the step."""
    problem: str | None
    """What Detectron2 says of boxes that are not finite."""
    first_output: str | None
    """The module that is the first to give an output that is not finite."""
    gradients: list[str]
    """Parameters whose gradients are not finite."""


def replay(path: Path, device: str | None = None) -> Replay:
    """Run a step that training saved, in this process; it changes nothing.

    Images of several processes are run one process after the other, or, where they were ranked
    together, as one batch. What a model draws at random is drawn as in training, but for batches
    put together.

    Raises:
        BucketRankError: see :func:`load_step` and :func:`choose_device`, or the weights are those
            of another version's detector.
    """
    cfg, step = load_step(path)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = choose_device(device), ""
    model = build_model(cfg).train()
    try:
        model.load_state_dict(step["model"])
    except RuntimeError as error:
        raise BucketRankError(
            f"The weights in {path} do not fit the detector that this version builds; run it with "
            "the version that saved it."
        ) from error
    if step["loss_normalizer"] is not None:
        model.loss_normalizer = step["loss_normalizer"]
    batches = [[as_image(image) for image in batch] for batch in step["batches"]]
    images = [image["file_name"] for batch in batches for image in batch]
    if ranking_scope(cfg) == "global":
        batches = [_together(batches, cfg.SOLVER.ACCUMULATE)]
    state, found = model.state_dict(), []
    weights = [name for name, value in state.items() if not value.isfinite().all()]
    scaler = build_grad_scaler(cfg)
    if scaler.is_enabled():
        scaler = torch.amp.GradScaler(torch.device(cfg.MODEL.DEVICE).type, step["grad_scale"])
    watch, guard = _OutputWatch(model), ForwardGuard(model)
    for rank, batch in enumerate(batches):
        seed_iteration(step["seed"], rank, step["iteration"])
        with EventStorage(step["iteration"]):
            losses = accumulate_gradients(model, batch, cfg, scaler)
        found.append({name: value.item() for name, value in losses.items()})
    return Replay(
        step["iteration"],
        images,
        step["losses"],
        mean_losses(found),
        weights,
        guard.problem,
        watch.first,
        non_finite_gradients(model),
    )


def _together(batches: list[list[dict]], parts: int) -> list[dict]:
    """The batches of several processes as one that divides into parts as each of them did."""
    size = len(batches[0]) // parts
    starts = range(0, len(batches[0]), size)
    return [image for start in starts for batch in batches for image in batch[start : start + size]]


class _OutputWatch:
    """Remembers the first module whose output holds a NaN or an infinity."""

    def __init__(self, model: nn.Module):
        self.first: str | None = None
        for name, module in model.named_modules():
            module.register_forward_hook(
                lambda _, given, output, name=name: self._look(name, output)
            )

    def _look(self, name: str, output: Any) -> None:
        if self.first is None and not all(t.isfinite().all() for t in _tensors(output)):
            self.first = name


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for each in value for t in _tensors(each)] if isinstance(value, list | tuple) else []
