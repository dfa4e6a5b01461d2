"""Detectron2's trainer with this project's data, checkpoints and hooks."""

import contextlib
import math
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..balance import EpochBalance
from ..modeling.ranking import WRITE_PERIOD
from .calibration import MatchedDetections
from .checkpoint import SafeCheckpointer
from .data_loader import build_train_loader
from .evaluation import evaluate_model, score_threshold
from .hooks import (
    KeepBest,
    KeepCheckpoints,
    KeepHistory,
    PatienceEndedError,
    ProgressLine,
    SaveOnInterrupt,
    SeedEachIteration,
    StopEarly,
    WriteRows,
    unwrap,
)
from .loss_profiler import LossProfiler
from .optimizer import build_optimizer
from .processes import StopRequest
from .run_calibration import calibrate_run
from .run_folder import evaluation_folder, metric_of, rewind_metrics
from .step import TrainingStep


class Trainer(DefaultTrainer):
    """:class:`DefaultTrainer` that resumes exactly: a resumed run equals an uninterrupted one.

    Args:
        cfg: a full config with SEED set and its data sets registered.
        console: shows the progress; None shows nothing.
        profile: measure the losses; see :mod:`.loss_profiler`.
        stop: on whose request to stop; see :class:`SaveOnInterrupt`.

    Attributes:
        stopped_early_after: so many evaluations without a better AP; 0: it did not stop early.
    """

    def __init__(
        self,
        cfg: CfgNode,
        console: Console | None = None,
        *,
        profile: bool = False,
        stop: StopRequest | None = None,
    ):
        # DefaultTrainer's own would wrap the model for GPUs only, and take its checkpointer.
        TrainerBase.__init__(self)
        self.cfg, self.start_iter, self.max_iter = cfg, 0, cfg.SOLVER.MAX_ITER
        self._console, self._stop = console, stop or StopRequest()
        self.loss_profiler: LossProfiler | None = None
        if profile and comm.is_main_process():
            self.loss_profiler = LossProfiler(cfg.MODEL.DEVICE, cfg.SOLVER.MAX_ITER)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        if comm.get_world_size() > 1:
            devices = None if cfg.MODEL.DEVICE == "cpu" else [comm.get_local_rank()]
            model = DistributedDataParallel(model, devices, broadcast_buffers=False)
        self._trainer = TrainingStep(cfg, model, self.build_train_loader(cfg), optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(
            self._trainer.evaluated, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self._step_is_unfinished = False
        self.stopped_early_after = 0
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg)

    @classmethod
    def test(cls, cfg: CfgNode, model, evaluators=None, **how) -> dict[str, Any]:
        """Evaluate on the data set of DATASETS.TEST; see :func:`evaluate_model`."""
        (dataset,) = cfg.DATASETS.TEST
        folder = evaluation_folder(Path(cfg.OUTPUT_DIR), dataset)
        return evaluate_model(cfg, model, dataset, folder, **how)

    def _evaluate(self) -> dict[str, Any]:
        model = self._trainer.evaluated
        if comm.get_world_size() > 1:
            # Every process has batch-norm statistics of its own; checkpoints hold the first one's.
            for module in get_bn_modules(model) if self._trainer.average is None else [model]:
                for statistic in module.buffers():
                    dist.broadcast(statistic, src=0)
        how = {"on_batch": self._on_evaluated_batch} if comm.is_main_process() else {}
        matched: list[MatchedDetections] = []
        results = self.test(self.cfg, model, on_matched=matched.append, **how)
        if matched:  # on the main process
            best_f1 = score_threshold(results)
            output, (dataset,) = Path(self.cfg.OUTPUT_DIR), self.cfg.DATASETS.TEST
            results["calibration"] = calibrate_run(
                output, unwrap(model), dataset, matched[0], best_f1
            )
        self._last_eval_results = results
        return results

    def _on_evaluated_batch(self, done: int, total: int) -> None:
        self._interrupt.during_evaluation()
        if self._progress is not None:
            self._progress.show_evaluation(done, total)

    def build_hooks(self) -> list[hooks.HookBase]:
        """See :meth:`DefaultTrainer.build_hooks`.

        Those that wait for other processes, to save, evaluate and agree to stop, come in one order
        on all of them. A checkpoint is saved before an evaluation: see :meth:`before_train`.
        """
        cfg = self.cfg
        patience, period = cfg.SOLVER.PATIENCE, cfg.TEST.EVAL_PERIOD
        checkpoints = KeepCheckpoints(cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_KEEP)
        self._evaluation = hooks.EvalHook(period, self._evaluate)
        self._interrupt = SaveOnInterrupt(self._stop, checkpoints)
        self._history = KeepHistory()
        self._best = self._progress = self._rows = self._early = None
        output, metric = Path(cfg.OUTPUT_DIR), metric_of(cfg)
        if patience:
            self._early = StopEarly(patience, period, output, metric, checkpoints, self._console)
        if comm.is_main_process():
            if period:
                self._best = KeepBest(period, self._trainer.evaluated, output, metric)
            if self._console is not None:
                title = f"{cfg.MODEL.META_ARCHITECTURE} {cfg.MODEL.RANKING.LOSS}"
                self._progress = ProgressLine(
                    title, cfg.SOLVER.IMS_PER_BATCH, self._console, cfg.SOLVER.EMA_DECAY > 0
                )
            self._rows = WriteRows(self.build_writers, WRITE_PERIOD, period)
        chosen = [
            SeedEachIteration(cfg.SEED),
            self.loss_profiler,
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._precise_bn(),
            self._history,
            checkpoints,
            self._evaluation,
            self._best,
            self._progress,
            self._interrupt,
            self._rows,
            self._early,
        ]
        return [hook for hook in chosen if hook is not None]

    def _precise_bn(self) -> hooks.PreciseBN | None:
        """Detectron2's hook, where TEST.PRECISE_BN asks for it and the model has batch norms."""
        cfg = self.cfg.clone()
        if not cfg.TEST.PRECISE_BN.ENABLED or not get_bn_modules(self.model):
            return None
        cfg.DATALOADER.NUM_WORKERS = 0
        loader = self.build_train_loader(cfg)
        period, iterations = cfg.TEST.EVAL_PERIOD, cfg.TEST.PRECISE_BN.NUM_ITER
        return hooks.PreciseBN(period, self.model, loader, iterations)

    def train(self) -> None:
        """See :meth:`DefaultTrainer.train`; ends sooner where SOLVER.PATIENCE does."""
        with contextlib.suppress(PatienceEndedError):
            super().train()

    def before_train(self) -> None:
        """See :meth:`TrainerBase.before_train`; also finishes the last step of a run that goes on.

        Its checkpoint was saved in the middle of `after_step`: a run killed soon after has not
        evaluated yet, not written its row of metrics, or not ended for want of patience.
        """
        super().before_train()
        unfinished = comm.all_gather(self._step_is_unfinished)[0]
        self.iter = self.storage.iter = self.start_iter - 1
        self._history.restore(latest=unfinished)
        if unfinished:
            for hook in (self._evaluation, self._best, self._rows):
                if hook is not None:
                    hook.after_step()
        if self._early is not None:
            self._early.stop_if_due()

    def resume_or_load(self, resume: bool = True) -> None:
        """See :meth:`DefaultTrainer.resume_or_load`; also continues the order of the data."""
        super().resume_or_load(resume)
        if self.start_iter == 0 and self._trainer.average is not None:
            # They were loaded into what a checkpoint holds.
            weights = self._trainer.evaluated.state_dict()
            unwrap(self._trainer.model).load_state_dict(weights)
        for module in self._trainer.model.modules():
            if isinstance(module, EpochBalance):
                num_images = len(self._trainer.data_loader.loader.dataset)
                images = self.cfg.SOLVER.IMS_PER_BATCH // self.cfg.SOLVER.ACCUMULATE
                module.epoch_iterations = math.ceil(num_images / images)
                if self.start_iter == 0:
                    module.reset()  # weights of another run may have brought its averages along
        if self.start_iter > 0:
            self._trainer.reset_data_loader(lambda: build_train_loader(self.cfg, self.start_iter))
        if resume and comm.is_main_process():
            self._step_is_unfinished = rewind_metrics(self.cfg, self.start_iter, WRITE_PERIOD)

    def unreadable_images(self) -> list[str]:
        """Training images that a process could not read; every process must ask."""
        return sorted(set().union(*comm.all_gather(self._trainer.data_loader.unreadable)))

    @property
    def skipped(self) -> int:
        """Steps that were left out for losses or gradients that were not finite."""
        return self._trainer.skipped

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        # Detectron2's RetinaNet keeps this outside its own state.
        normalizer = getattr(unwrap(self._trainer.model), "loss_normalizer", None)
        return state if normalizer is None else {**state, "loss_normalizer": normalizer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Learning rate and other settings are those of the config, also where it has changed.
        optimizer = self._trainer.optimizer
        settings = [
            {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
        ]
        super().load_state_dict(state_dict)
        self.scheduler.base_lrs = [each["initial_lr"] for each in settings]
        rates = self.scheduler.get_lr()
        for group, own, lr in zip(optimizer.param_groups, settings, rates, strict=True):
            group.update(own, lr=lr)
        if "loss_normalizer" in state_dict:
            unwrap(self._trainer.model).loss_normalizer = state_dict["loss_normalizer"]
