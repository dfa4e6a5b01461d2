"""Detectron2's trainer with this project's data, checkpoints and hooks."""

import math
import weakref
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, hooks
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from rich.console import Console
from torch import nn

from ..balance import EpochBalance
from ..errors import BucketRankError
from .checkpoint import SafeCheckpointer
from .data_loader import build_train_loader
from .evaluation import evaluate_model
from .hooks import (
    ProgressLine,
    SaveOnInterrupt,
    SeedEachIteration,
    drop_metrics_after,
    unwrap,
)
from .loss_profiler import LossProfiler
from .step import TrainingStep


class Trainer(DefaultTrainer):
    """:class:`DefaultTrainer` that resumes exactly: a resumed run equals an uninterrupted one.

    Args:
        cfg: a full config with SEED set and its data sets registered.
        console: shows the progress; None shows nothing.
        profile: measure the losses; see :mod:`.loss_profiler`.
    """

    def __init__(self, cfg: CfgNode, console: Console | None = None, *, profile: bool = False):
        self._console = console
        self.loss_profiler: LossProfiler | None = None
        if profile and comm.is_main_process():
            self.loss_profiler = LossProfiler(cfg.MODEL.DEVICE, cfg.SOLVER.MAX_ITER)
        super().__init__(cfg)
        of_detectron2 = self._trainer
        self._trainer = TrainingStep(
            cfg, of_detectron2.model, of_detectron2.data_loader, of_detectron2.optimizer
        )
        self.checkpointer = SafeCheckpointer(
            self._trainer.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        for hook in self._hooks:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook.checkpointer = self.checkpointer

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer SOLVER.OPTIMIZER with Detectron2's parameter groups.

        Raises:
            BucketRankError: SOLVER.OPTIMIZER is neither "SGD" nor "AdamW".
        """
        name = cfg.SOLVER.OPTIMIZER
        if name == "SGD":
            return super().build_optimizer(cfg, model)
        if name != "AdamW":
            raise BucketRankError(f"SOLVER.OPTIMIZER is {name!r}; use SGD or AdamW.")
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
            overrides={"relative_position_bias_table": {"weight_decay": 0.0}},
        )
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW(params, lr=cfg.SOLVER.BASE_LR))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg)

    @classmethod
    def test(cls, cfg: CfgNode, model, evaluators=None, **how) -> dict[str, Any]:
        """Evaluate on the data set of DATASETS.TEST; see :func:`evaluate_model`."""
        (dataset,) = cfg.DATASETS.TEST
        return evaluate_model(
            cfg, model, dataset, Path(cfg.OUTPUT_DIR) / "inference" / dataset, **how
        )

    def _evaluate(self) -> dict[str, Any]:
        how = {} if self._progress is None else {"on_batch": self._progress.show_evaluation}
        self._last_eval_results = self.test(self.cfg, self.model, **how)
        return self._last_eval_results

    def build_hooks(self) -> list[hooks.HookBase]:
        cfg = self.cfg
        first: list[hooks.HookBase] = [SeedEachIteration(cfg.SEED)]
        if self.loss_profiler is not None:
            first.append(self.loss_profiler)
        self._progress = None
        if self._console is not None:
            title = f"{cfg.MODEL.META_ARCHITECTURE} {cfg.MODEL.RANKING.LOSS}"
            self._progress = ProgressLine(title, cfg.SOLVER.IMS_PER_BATCH, self._console)
        built = [
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate)
            if isinstance(hook, hooks.EvalHook)
            else hook
            for hook in super().build_hooks()
        ]
        watch: list[hooks.HookBase] = [SaveOnInterrupt()]
        if self._progress is not None:
            watch.insert(0, self._progress)
        # The writers, which the main process alone has, come last. All else must come in the same
        # order on every process: evaluating and agreeing to stop wait for the others.
        writers = [hook for hook in built if isinstance(hook, hooks.PeriodicWriter)]
        return [*first, *(hook for hook in built if hook not in writers), *watch, *writers]

    def resume_or_load(self, resume: bool = True) -> None:
        """See :meth:`DefaultTrainer.resume_or_load`; also continues the order of the data."""
        super().resume_or_load(resume)
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
            drop_metrics_after(Path(self.cfg.OUTPUT_DIR) / "metrics.json", self.start_iter)

    @property
    def unreadable_images(self) -> set[str]:
        """Training images that could not be read."""
        return self._trainer.data_loader.unreadable

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
        super().load_state_dict(state_dict)
        if "loss_normalizer" in state_dict:
            unwrap(self._trainer.model).loss_normalizer = state_dict["loss_normalizer"]
