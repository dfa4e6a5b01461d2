"""What happens around every training step: progress, statistics, timing, interruption."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from rich.console import Console
from torch import nn

from ..console import ProgressDisplay

WARM_UP_ITERATIONS = 10
"""The first iterations of a training, of which neither steps nor losses are timed."""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def seed_iteration(seed: int, rank: int, iteration: int) -> None:
    """Seed every random number generator by what is given."""
    key = [seed, rank, iteration]
    seed_all_rng(int(np.random.SeedSequence(key).generate_state(1)[0]) // 2)


class SeedEachIteration(HookBase):
    """Seeds every random number generator by (seed, rank, iteration).

    What a step draws (the proposals that Faster R-CNN samples) then does not depend on whether the
    run was interrupted before it.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self) -> None:
        seed_iteration(self.seed, comm.get_rank(), self.trainer.iter)


class TrainingInterruptedError(Exception):
    """Training was stopped by the user or the system after saving a checkpoint."""

    def __init__(self, iteration: int):
        super().__init__(iteration)
        self.iteration = iteration


class SaveOnInterrupt(HookBase):
    """On SIGINT or SIGTERM: ends the step, saves a checkpoint, raises TrainingInterruptedError.

    A second signal stops at once. Several processes agree to stop every `period` iterations, so
    that none waits for another that is gone.
    """

    signals = (signal.SIGINT, signal.SIGTERM)
    period = 20

    def before_train(self) -> None:
        self.received: int | None = None
        self.previous = {number: signal.signal(number, self._receive) for number in self.signals}

    def _receive(self, number: int, frame: Any) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def after_step(self) -> None:
        if self._agreed_to_stop():
            iteration = self.trainer.iter
            self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            raise TrainingInterruptedError(iteration)

    def _agreed_to_stop(self) -> bool:
        if comm.get_world_size() == 1:
            return self.received is not None
        if (self.trainer.iter + 1) % self.period:
            return False
        return any(comm.all_gather(self.received is not None))

    def after_train(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class ProgressLine(HookBase):
    """Shows iteration, time left, images/s and losses, and every evaluation on the way."""

    def __init__(self, title: str, images_per_batch: int, console: Console):
        self.title, self.images_per_batch, self.console = title, images_per_batch, console

    def before_train(self) -> None:
        self.progress = ProgressDisplay(self.trainer.max_iter, self.console, interval_s=30.0)
        self.progress.bar.start()
        self.started = time.monotonic()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        self._print_evaluation(done)
        pace = (time.monotonic() - self.started) / (done - self.trainer.start_iter)
        left = pace * (self.trainer.max_iter - done) / 60
        self._show(done, f"{left:.1f} min left, {self._status()}")

    def after_train(self) -> None:
        self.progress.bar.stop()

    def show_evaluation(self, done: int, total: int) -> None:
        """Show how far an evaluation is, in batches."""
        self._show(self.trainer.iter, f"evaluating {done}/{total}")

    def _show(self, iteration: int, text: str) -> None:
        line = f"{self.title} {iteration}/{self.trainer.max_iter}, {text}"
        self.progress.show(iteration, line, f"{self.title}, {text}")

    def _print_evaluation(self, done: int) -> None:
        latest = self.trainer.storage.latest()
        if latest.get("bbox/AP", (0, None))[1] == self.trainer.iter:
            found = [f"{name} {latest[f'bbox/{name}'][0]:.1f}" for name in ("AP", "AP50", "AP75")]
            self.console.print(f"after {done} iterations: {', '.join(found)}", highlight=False)

    def _status(self) -> str:
        latest = self.trainer.storage.latest()
        losses = [
            f"{name.removeprefix('loss_')} {value:.3f}"
            for name, (value, _) in latest.items()
            if name.startswith("loss_")
        ]
        seconds = latest["time"][0] if "time" in latest else None
        speed = f"{self.images_per_batch / seconds:.1f} images/s  " if seconds else ""
        return speed + "  ".join(losses)


def drop_metrics_after(metrics: Path, start_iter: int) -> None:
    """Leave out of a metrics.json what iterations from `start_iter` on wrote before a resume."""
    if metrics.is_file():
        lines = metrics.read_text().splitlines()
        kept = [line for line in lines if line and json.loads(line)["iteration"] < start_iter]
        metrics.write_text("".join(line + "\n" for line in kept))
