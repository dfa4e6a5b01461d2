"""The input that the losses get in one step of training. Needs detectron2."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from detectron2.engine import TrainerBase, hooks
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
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as folder, runs.run_logging(Path(folder)):
        cfg.OUTPUT_DIR = folder
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        # Of the trainer's own hooks, only what training itself needs: nothing is kept of it.
        needed = (SeedEachIteration, hooks.LRScheduler)
        trainer._hooks = [hook for hook in trainer._hooks if isinstance(hook, needed)]
        try:
            TrainerBase.train(trainer, 0, after)
            recorder = _recorder(unwrap(trainer._trainer.model), cases)
            with patch.object(RankingLoss, "forward_indexed", recorder):
                TrainerBase.train(trainer, after, after + 1)
        except FloatingPointError as error:
            raise BucketRankError(
                f"Training diverged in iteration {trainer.iter}, before the step to profile; take "
                "an earlier one with --after."
            ) from error
    if not cases:
        raise BucketRankError(
            f"The detector of {config} has no ranking criterion: set MODEL.RANKING.LOSS to a "
            "ranking loss."
        )
    return cases


def _recorder(model: torch.nn.Module, cases: list[Case]) -> Callable[..., dict[str, Tensor]]:
    """`RankingLoss.forward_indexed`, but every call of it makes a case."""
    forward = RankingLoss.forward_indexed
    heads = {
        id(criterion.loss): type(model.get_submodule(name.rpartition(".")[0])).__name__
        for name, criterion in ranking_criteria(model).items()
    }

    def record(
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
        size = f"P = {case.num_positives:,}, N = {case.num_negatives:,}"
        cases.append(replace(case, name=f"{heads[id(loss)]}, call {len(cases) + 1}: {size}"))
        return forward(loss, logits, positives, qualities, ignored_rows, box_losses)

    return record
