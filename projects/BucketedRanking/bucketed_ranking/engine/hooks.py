"""What happens around every training step: progress, statistics, timing, interruption."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter
from rich.console import Console
from torch import nn

from ..console import ProgressDisplay
from .checkpoint import FINAL, SafeCheckpointer
from .processes import StopRequest, TrainingInterruptedError
from .run_folder import best_of, evaluations

logger = logging.getLogger(__name__)

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


class KeepCheckpoints(HookBase):
    """Saves a checkpoint every `period` iterations and after the last; the newest `keep` stay.

    All processes wait until the main process has written it: none ends while it writes.
    """

    def __init__(self, period: int, keep: int):
        self.period, self.keep = period, keep

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.save(FINAL)
        elif done % self.period == 0:
            self.save()

    def save(self, name: str | None = None) -> None:
        """Save a checkpoint of the iteration, which is done; None names it by the iteration."""
        iteration = self.trainer.iter
        self.trainer.checkpointer.save(name or f"model_{iteration:07d}", iteration=iteration)
        if comm.is_main_process() and self.keep:
            numbered = Path(self.trainer.checkpointer.save_dir).glob("model_[0-9]*.pth")
            for old in sorted(numbered)[: -self.keep]:
                old.unlink(missing_ok=True)
        comm.synchronize()


class KeepBest(hooks.BestCheckpointer):
    """Keeps the weights with the best AP of all evaluations as model_best.pth.

    Stands on the main process alone, which has the results.
    """

    def __init__(self, eval_period: int, model: nn.Module, output: Path, metric: str):
        super().__init__(eval_period, SafeCheckpointer(model, str(output)), metric)
        self.output, self.metric = output, metric

    def before_train(self) -> None:
        best = best_of(evaluations(self.output, self.metric))
        self.best_iter, self.best_metric = best or (None, None)


class WriteRows(hooks.PeriodicWriter):
    """:class:`PeriodicWriter` that also writes after every evaluation, before it can be lost.

    Its writers open their files when training starts: until then, resuming may write them anew.
    """

    def __init__(self, build: Callable[[], list[EventWriter]], period: int, eval_period: int):
        super().__init__([], period)
        self.build, self.eval_period = build, eval_period

    def before_train(self) -> None:
        self._writers = self.build()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        due = done % self._period == 0 or done == self.trainer.max_iter
        if not due and self.eval_period and done % self.eval_period == 0:
            for writer in self._writers:
                writer.write()
        super().after_step()


class SaveOnInterrupt(HookBase):
    """Stops training after the iteration in which any process was asked to, with a checkpoint.

    Raises :class:`TrainingInterruptedError` on all of them.
    """

    def __init__(self, stop: StopRequest, checkpoints: KeepCheckpoints):
        self.stop, self.checkpoints = stop, checkpoints

    def before_train(self) -> None:
        self.saved, several = False, comm.get_world_size() > 1
        self.group = dist.new_group(backend="gloo") if several else None

    def after_step(self) -> None:
        asked = torch.tensor([int(self.stop.received is not None)])
        if self.group is not None:
            dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self.group)
        if asked:
            self.checkpoints.save()
            raise TrainingInterruptedError(self.trainer.iter)

    def during_evaluation(self) -> None:
        """Stop a single process in the middle of an evaluation, which --resume then does anew.

        Of several, which cannot agree there, the main one saves, and the evaluation goes on.
        """
        if self.stop.received is None or self.saved:
            return
        self.saved, iteration = True, self.trainer.iter
        if iteration < self.trainer.max_iter:
            self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        if self.group is None:
            raise TrainingInterruptedError(min(iteration, self.trainer.max_iter - 1))


class PatienceEndedError(BaseException):
    """Ends a training that is done; no Exception, which Detectron2 would log as a failure."""


class StopEarly(HookBase):
    """Ends training after `patience` evaluations in a row without a better AP.

    The last of all hooks, on all processes: the evaluations are counted in metrics.json. The run
    then ends as one of so many iterations does, with a final checkpoint, evaluation and results.

    Args:
        console: shows why; None, as on all but the main process, shows nothing.
    """

    def __init__(
        self,
        patience: int,
        eval_period: int,
        output: Path,
        metric: str,
        checkpoints: KeepCheckpoints,
        console: Console | None,
    ):
        self.patience, self.eval_period, self.metric = patience, eval_period, metric
        self.output, self.checkpoints, self.console = output, checkpoints, console

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.eval_period == 0:
            self.stop_if_due()

    def stop_if_due(self) -> None:
        """Raise :class:`PatienceEndedError` on all processes if the patience has ended."""
        done = self.trainer.iter + 1
        found = evaluations(self.output, self.metric) if comm.is_main_process() else []
        found = comm.all_gather(found)[0]
        best = best_of(found)
        waited = sum(iteration > (best[0] if best else -1) for iteration, _ in found)
        if waited < self.patience or done == self.trainer.max_iter:
            return
        had = f"had a better AP than {best[1]:.1f} (model_best.pth)" if best else "had an AP"
        sentence = (
            f"Stopped early after {done} iterations: none of the last {waited} evaluations {had}."
        )
        logger.info(sentence)
        if self.console is not None:
            self.console.print(sentence, highlight=False, soft_wrap=True)
        self.checkpoints.save(FINAL)
        self.trainer.stopped_early_after = waited
        self.trainer.iter = self.trainer.max_iter = done  # what the end of a training looks like
        raise PatienceEndedError


class KeepHistory(HookBase):
    """Takes the last values of all statistics through a checkpoint, so that a resumed run smooths
    its metrics as an uninterrupted one does."""

    window = 20

    def __init__(self) -> None:
        self.restored: dict[str, tuple[list[tuple[float, int]], bool]] = {}

    def state_dict(self) -> dict[str, Any]:
        storage = self.trainer.storage
        # Of what was restored and has not been put again, the storage has no hint.
        hints = {name: smooth for name, (_, smooth) in self.restored.items()}
        hints |= storage.smoothing_hints()
        return {
            name: (history.values()[-self.window :], hints[name])
            for name, history in storage.histories().items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restored = state

    def restore(self, latest: bool) -> None:
        """Put what was loaded into the storage; `latest`: for writers to write its last row."""
        storage = self.trainer.storage
        for name, (values, smooth) in self.restored.items():
            for value, iteration in values:
                if latest and iteration == storage.iter:
                    storage.put_scalar(name, value, smoothing_hint=smooth)
                else:
                    storage.histories()[name].update(value, iteration)


class ProgressLine(HookBase):
    """Shows iteration, time left, images/s and losses, and every evaluation on the way.

    Args:
        averaged: evaluated are averaged weights.
    """

    def __init__(self, title: str, images_per_batch: int, console: Console, averaged: bool):
        self.title, self.images_per_batch, self.console = title, images_per_batch, console
        self.of_what = ", averaged weights" if averaged else ""

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
            when = f"after {done} iterations{self.of_what}"
            self.console.print(f"{when}: {', '.join(found)}", highlight=False)

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
