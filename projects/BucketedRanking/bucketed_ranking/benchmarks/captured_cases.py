"""The input that the losses get in one step of training. Needs detectron2."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from detectron2.engine import HookBase, hooks
from torch import Tensor

from ..engine import runs, setup
from ..engine.hooks import SeedEachIteration, ranking_criteria, unwrap
from ..engine.trainer import Trainer
from ..errors import BucketRankError
from ..losses import RankingLoss
from .loss_cases import Case

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
    """What each ranking loss of a detector is given in one step of training.

    Args:
        config: see `engine.setup.find_config`.
        dataset: a data set with splits; None: the config's own.
        options: KEY VALUE pairs.
        after: iterations of training before the step.

    Raises:
        BucketRankError: config, data set or options are not there or do not fit, training diverges,
            or the detector has no ranking loss.
    """
    cfg = setup.load_config(config, loss=DEFAULT_LOSS, options=options, device=device)
    setup.configure_datasets(cfg, *setup.choose_datasets(cfg, dataset, None, None))
    cfg.SEED = seed
    with tempfile.TemporaryDirectory() as folder, runs.run_logging(Path(folder)):
        cfg.OUTPUT_DIR = folder
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        recorder = _Recorder(unwrap(trainer._trainer.model), iteration=after)
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
    """Makes a case of every call of a ranking loss in one iteration."""

    def __init__(self, model: torch.nn.Module, iteration: int) -> None:
        self.cases: list[Case] = []
        self._iteration, self._recording = iteration, ExitStack()
        self._heads = {
            id(criterion.loss): type(model.get_submodule(name.rpartition(".")[0])).__name__
            for name, criterion in ranking_criteria(model).items()
        }

    def before_step(self) -> None:
        if self.trainer.iter == self._iteration:
            record = self._record(RankingLoss.forward_indexed)
            self._recording.enter_context(patch.object(RankingLoss, "forward_indexed", record))

    def after_step(self) -> None:
        self._recording.close()

    def _record(self, forward):
        def record_and_call(
            loss: RankingLoss,
            logits: Tensor,
            positives: Tensor,
            qualities: Tensor,
            ignored_rows: Tensor,
            box_losses: Tensor | None = None,
        ) -> dict[str, Tensor]:
            # Only aLRP is given box losses; what stands in for them takes as long.
            errors = 1 - qualities if box_losses is None else box_losses.detach().clone()
            ignored = ignored_rows if bool(ignored_rows.any()) else None
            case = Case("", logits.detach().clone(), positives, qualities, errors, ignored)
            label = f"{self._heads[id(loss)]}, call {len(self.cases) + 1}"
            size = f"P = {case.num_positives:,}, N = {case.num_negatives:,}"
            self.cases.append(case.renamed(f"{label}: {size}"))
            return forward(loss, logits, positives, qualities, ignored_rows, box_losses)

        return record_and_call
