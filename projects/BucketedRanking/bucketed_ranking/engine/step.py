"""A step of training: the gradients of one batch, in one part or in several, and the update."""

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from .failed_step import as_plain, save_step
from .hooks import unwrap

logger = logging.getLogger(__name__)

FOLDER = "nan"
"""In the folder of a run: the steps whose losses or gradients were not finite."""
_KEPT_WHEN_SKIPPED = 3
_SAID_OF_BOXES = ("Inf/NaN", "infinite or NaN", "bad box")


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is NaN or infinite; the weights are those from before the step."""


class ForwardState:
    """What forward passes change in a model: its buffers, and the normaliser that Detectron2's
    RetinaNet keeps of its losses. Taken before a step, to be restored where the step is not to have
    happened."""

    def __init__(self, model: nn.Module):
        self.model = unwrap(model)
        frozen = [m for m in self.model.modules() if isinstance(m, FrozenBatchNorm2d)]
        constant = {id(buffer) for module in frozen for buffer in module.buffers()}
        self.buffers = {
            name: buffer.clone()
            for name, buffer in self.model.named_buffers()
            if id(buffer) not in constant
        }
        self.loss_normalizer = getattr(self.model, "loss_normalizer", None)

    def restore(self) -> None:
        for name, value in self.buffers.items():
            self.model.get_buffer(name).copy_(value)
        if self.loss_normalizer is not None:
            self.model.loss_normalizer = self.loss_normalizer
        elif hasattr(self.model, "loss_normalizer"):
            del self.model.loss_normalizer  # the first step sets it


class ForwardGuard:
    """Takes the place of a model's forward pass. What Detectron2 raises in training for boxes that
    are not finite, becomes a loss: NaN times every parameter. A process that stopped in the middle
    of a step would leave the others waiting.

    Attributes:
        problem: what was raised last, if anything.
    """

    def __init__(self, model: nn.Module):
        self.model, self.forward = model, model.forward
        self.problem: str | None = None
        model.forward = self

    def __call__(self, batch: list[dict]) -> Any:
        try:
            return self.forward(batch)
        except (FloatingPointError, AssertionError) as error:
            said = str(error)
            if not self.model.training or not any(words in said for words in _SAID_OF_BOXES):
                raise
        self.problem = said.rstrip(".")
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return {"loss": sum(torch.nan * parameter.sum() for parameter in trained)}


class TrainingStep(SimpleTrainer):
    """:class:`SimpleTrainer` with mixed precision, gradients of several parts, guarded weights.

    With SOLVER.AMP.ENABLED the forward pass runs under autocast: in float16 with a GradScaler on
    CUDA, as in Detectron2's AMPTrainer, in bfloat16, which needs none, elsewhere.

    With SOLVER.ACCUMULATE = K each process runs its images in K parts, one after the other, and the
    step takes the mean of the parts' gradients. A ranking spans the images of one forward pass.

    No loss or gradient that is NaN or infinite on any process reaches the weights. All processes
    then do as SOLVER.ON_NAN says. With a GradScaler, gradients that are not finite are its
    business: it leaves the step out and lowers its scale, until that is below 1.

    Attributes:
        skipped: how many steps were left out.
        average: of the weights after each step that was not left out; None without
            SOLVER.EMA_DECAY.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, data_loader: Any, optimizer: Any):
        super().__init__(model, data_loader, optimizer)
        self.cfg = cfg
        decay = cfg.SOLVER.EMA_DECAY
        self.average = None
        if decay:
            from .ema import WeightAverage  # timm takes a second to import

            self.average = WeightAverage(unwrap(model), decay)
        self.guard = ForwardGuard(unwrap(model))
        self.grad_scaler = build_grad_scaler(cfg)
        self.skipped = 0
        self.skipped_in_a_row = 0

    def run_step(self) -> None:
        """See :meth:`SimpleTrainer.run_step`.

        Raises:
            NonFiniteError: a loss or gradient is not finite and ON_NAN is "stop", or MAX_SKIPPED
                steps were skipped one after the other.
        """
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        before = ForwardState(self.model)
        self.guard.problem = None
        self.optimizer.zero_grad()
        losses = accumulate_gradients(self.model, batch, self.cfg, self.grad_scaler)
        self.after_backward()

        # The one point of the step at which the host waits for the device.
        own = torch.stack([value.float() for value in (*losses.values(), self._largest_gradient())])
        *values, gradient = own.tolist()
        own_losses = dict(zip(losses, values, strict=True))
        # From here on all processes know the same, and so do the same.
        all_losses, gradients, times, problems = zip(
            *comm.all_gather((own_losses, gradient, data_time, self.guard.problem)), strict=True
        )
        found = mean_losses(all_losses)
        finite = all(map(math.isfinite, found.values()))
        finite_gradients = all(map(math.isfinite, gradients))
        if finite and (finite_gradients or self._scaler_reacts()):
            self._put_metrics(found, data_time, max(times))
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
            if self.average is not None and finite_gradients:
                self.average.update(unwrap(self.model))
            self.skipped_in_a_row = 0
        else:
            before.restore()
            self._leave_out(batch, found, self._what_is_wrong(found, problems))

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and kept: that of the averaged weights where there is one."""
        return self.model if self.average is None else self.average.module

    def _largest_gradient(self) -> Tensor:
        """Scalar: the largest magnitude in any gradient; NaN if one is NaN."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return get_total_norm(grads, norm_type=math.inf)

    def _scaler_reacts(self) -> bool:
        return self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() >= 1

    def _put_metrics(self, losses: dict[str, float], own_time: float, data_time: float) -> None:
        """See :meth:`SimpleTrainer.write_metrics`, whose names these are."""
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", own_time)
        if comm.is_main_process():
            storage.put_scalar("data_time", data_time)
            storage.put_scalar("total_loss", sum(losses.values()))
            storage.put_scalars(**losses)

    def _leave_out(self, batch: list[dict], losses: dict[str, float], problem: str) -> None:
        self.skipped_in_a_row += 1
        skip = self.cfg.SOLVER.ON_NAN == "skip"
        limit = self.cfg.SOLVER.MAX_SKIPPED
        message = f"{problem} {self._save(batch, losses, skip)}"
        if not skip:
            raise NonFiniteError(message)
        self.skipped += 1
        if self.skipped_in_a_row >= limit:
            raise NonFiniteError(
                f"{message} It was skipped, as were the {limit - 1} before it: "
                "SOLVER.MAX_SKIPPED in a row."
            )
        self.optimizer.zero_grad()
        if comm.is_main_process():
            logger.warning(
                "Iteration %d was skipped (%d in all): %s", self.iter, self.skipped, message
            )

    def _what_is_wrong(self, losses: dict[str, float], problems: Sequence[str | None]) -> str:
        said = "".join(f" ({problem})" for problem in dict.fromkeys(problems) if problem)
        terms = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        if not all(map(math.isfinite, losses.values())):
            return f"The loss is not finite: {terms}{said}."
        wrong = non_finite_gradients(unwrap(self.model))
        return (
            f"The losses are finite ({terms}), but the gradients of {len(wrong)} parameters are "
            f"not, such as that of {wrong[0]}."
        )

    def _save(self, batch: list[dict], losses: dict[str, float], skip: bool) -> str:
        """Save the step, of several processes together, and say of which images and where."""
        batches = comm.gather([as_plain(image) for image in batch])
        if not comm.is_main_process():
            return "The main process has saved the batch."
        images = [str(image["file_name"]) for part in batches for image in part]
        said = f"Its images are {', '.join(images)}."
        path = Path(self.cfg.OUTPUT_DIR) / FOLDER / f"iteration_{self.iter:07d}.pth"
        if skip and len(list(path.parent.glob("*.pth"))) >= _KEPT_WHEN_SKIPPED:
            return f"{said} It was not saved: {path.parent} has {_KEPT_WHEN_SKIPPED} already."
        try:
            scale = self.grad_scaler.get_scale()
            save_step(path, self.cfg, self.iter, unwrap(self.model), scale, losses, batches)
        except (OSError, RuntimeError) as error:  # the second is torch's, for a full disk
            return f"{said} It could not be saved in {path}: {error}."
        return f"{said} It is saved in {path}: `bucketrank replay {path}` runs it again."

    def state_dict(self) -> dict[str, Any]:
        """Also the trained weights where others, their average, are a checkpoint's own."""
        state = super().state_dict() | {"skipped": [self.skipped, self.skipped_in_a_row]}
        if scaler := self.grad_scaler.state_dict():  # empty without one
            state["grad_scaler"] = scaler
        if self.average is not None:
            trained = unwrap(self.model).state_dict()
            state["average"] = {"updates": self.average.updates, "trained_weights": trained}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.skipped, self.skipped_in_a_row = state_dict.get("skipped", (0, 0))
        if "grad_scaler" in state_dict and self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        if self.average is not None:
            self.average.updates = state_dict["average"]["updates"]
            unwrap(self.model).load_state_dict(state_dict["average"]["trained_weights"])


def build_grad_scaler(cfg: CfgNode) -> torch.amp.GradScaler:
    """The scaler that float16 needs; one that does nothing where there is no float16."""
    device = torch.device(cfg.MODEL.DEVICE).type
    return torch.amp.GradScaler(device, enabled=cfg.SOLVER.AMP.ENABLED and device == "cuda")


def accumulate_gradients(
    model: nn.Module, batch: list[dict], cfg: CfgNode, grad_scaler: torch.amp.GradScaler
) -> dict[str, Tensor]:
    """Add the gradients of a batch, in SOLVER.ACCUMULATE parts, to those of the model.

    Returns:
        The losses, detached, means over the parts.
    """
    device, parts = torch.device(cfg.MODEL.DEVICE).type, cfg.SOLVER.ACCUMULATE
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    size = len(batch) // parts
    several = isinstance(model, nn.parallel.DistributedDataParallel)
    means: dict[str, Tensor] = {}
    for start in range(0, len(batch), size):
        # Processes exchange gradients once, with the last part.
        waits = several and start + size < len(batch)
        with model.no_sync() if waits else nullcontext():
            with torch.autocast(device, dtype, enabled=cfg.SOLVER.AMP.ENABLED):
                losses = model(batch[start : start + size])
                total = sum(losses.values()) / parts
            grad_scaler.scale(total).backward()
        for name, value in losses.items():
            part = value.detach() / parts
            means[name] = means[name] + part if name in means else part
    return means


def mean_losses(each: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over processes; NaN where one lacks a loss, as its forward pass failed or another's."""
    names = dict.fromkeys(name for losses in each for name in losses)
    return {name: float(np.mean([o.get(name, math.nan) for o in each])) for name in names}


def non_finite_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradients hold a NaN or an infinity."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
