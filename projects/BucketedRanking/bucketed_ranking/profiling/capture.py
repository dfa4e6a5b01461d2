"""The input that the losses get in one step of training. Needs detectron2."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..criterion import RankingCriterion
from ..engine import runs, setup
from ..engine.hooks import SeedEachIteration, ranking_criteria, unwrap
from ..engine.trainer import Trainer
from ..errors import BucketRankError
from .cases import Case

DEFAULT_LOSS = "rs-exact"
"""What a detector is trained with before the step; MODEL.RANKING.LOSS overrides it."""


def capture_cases(
    config: str,
    *,
    dataset: str | None = None,
    options: Sequence[str] = (),
    device: str | None = None,
    after: int = 0,
    seed: int = 0,
) -> list[Case]:
    """What each ranking criterion of a detector is given in one step of training.

    Args:
        config: see `engine.setup.find_config`.
        dataset: a data set with splits; None: the config's own.
        options: KEY VALUE pairs.
        after: iterations of training before the step.

    Raises:
        BucketRankError: config, data set or options are not there or do not fit, training diverges,
            or the detector has no ranking criterion.
    """
    cfg = setup.load_config(config, loss=DEFAULT_LOSS, options=options, device=device)
    setup.configure_datasets(cfg, *setup.choose_datasets(cfg, dataset, None, None))
    cfg.SEED = seed
    with tempfile.TemporaryDirectory() as folder, runs.run_logging(Path(folder)):
        cfg.OUTPUT_DIR = folder
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        model = unwrap(trainer._trainer.model)
        recorder = _Recorder(model, iteration=after)
        # Of the trainer's own hooks, only what training itself needs: nothing is kept of it.
        needed = (SeedEachIteration, hooks.LRScheduler)
        trainer._hooks = [hook for hook in trainer._hooks if isinstance(hook, needed)]
        trainer.register_hooks([recorder])
        trainer.max_iter = after + 1
        try:
            trainer.train()
        except FloatingPointError as error:
            raise BucketRankError(
                f"Training diverged in iteration {trainer.iter}, before the step to profile; take "
                "an earlier one with --after."
            ) from error
    if not recorder.cases:
        raise BucketRankError(
            f"The detector of {config} has no ranking criterion: set MODEL.RANKING.LOSS to a "
            "ranking loss."
        )
    return recorder.cases


class _Recorder(HookBase):
    """Makes a case of every call of a criterion in one iteration."""

    def __init__(self, model: nn.Module, iteration: int) -> None:
        self.cases: list[Case] = []
        self._iteration = iteration
        self._handles: list[RemovableHandle] = []
        self._criteria = ranking_criteria(model)
        self._owners = {
            name: type(model.get_submodule(name.rpartition(".")[0])).__name__
            for name in self._criteria
        }

    def before_step(self) -> None:
        if self.trainer.iter == self._iteration:
            for name, criterion in self._criteria.items():
                record = self._recording(name)
                handle = criterion.register_forward_pre_hook(record, with_kwargs=True)
                self._handles.append(handle)

    def after_step(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _recording(self, name: str):
        def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            label = f"{self._owners[name]}, call {len(self.cases) + 1}"
            self.cases.append(_case_of(label, args, kwargs))

        return record


def _case_of(label: str, args: tuple, kwargs: dict[str, Any]) -> Case:
    """What the criterion itself makes of its arguments for a loss."""
    loss = _RecordingLoss()
    args = tuple(_detached(value) for value in args)
    RankingCriterion(loss)(*args, **{name: _detached(value) for name, value in kwargs.items()})
    assert loss.case is not None
    case = loss.case
    name = f"{label}: P = {case.num_positives:,}, N = {case.num_negatives:,}"
    return replace(case, name=name)


class _RecordingLoss(nn.Module):
    """Stands in for a RankingLoss, and keeps what it is called with."""

    objective = "alrp"  # the one that is given box losses

    def __init__(self) -> None:
        super().__init__()
        self.case: Case | None = None

    def forward_indexed(
        self,
        logits: Tensor,
        positives: Tensor,
        qualities: Tensor,
        ignored_rows: Tensor,
        box_losses: Tensor,
    ) -> dict[str, Tensor]:
        ignored = ignored_rows if bool(ignored_rows.any()) else None
        self.case = Case("", logits, positives, qualities, box_losses, ignored)
        zero = logits.new_zeros(())
        return {"loss_rank": zero, "loss_loc": zero}


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
