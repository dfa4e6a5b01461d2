"""What the ranking losses of a detector are given in one step of training."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from detectron2.engine import TrainerBase, hooks
from torch import Tensor

from ..errors import BucketRankError
from ..losses import RankingLoss
from . import runs, setup
from .hooks import SeedEachIteration, ranking_criteria, unwrap
from .trainer import Trainer

DEFAULT_LOSS = "rs-exact"
"""What a detector is trained with before the step; MODEL.RANKING.LOSS overrides it."""


def capture_loss_inputs(
    config: str,
    *,
    dataset: str | None = None,
    options: Sequence[str] = (),
    device: str | None = None,
    after: int = 0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What each ranking loss of a detector is given in one step of training.

    Args:
        config: see `engine.setup.find_config`.
        dataset: a data set with splits; None: the config's own.
        options: KEY VALUE pairs.
        after: iterations of training before the step.

    Returns:
        For each call the class of its "head" and the arguments of `RankingLoss.forward_indexed`.

    Raises:
        BucketRankError: config, data set or options are not there or do not fit, training diverges,
            or the detector has no ranking loss.
    """
    cfg = setup.load_config(config, loss=DEFAULT_LOSS, options=options, device=device)
    setup.configure_datasets(cfg, *setup.choose_datasets(cfg, dataset, None, None))
    cfg.SEED = seed
    calls: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, runs.run_logging(Path(folder)):
        cfg.OUTPUT_DIR = folder
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        # Of the trainer's own hooks, only what training itself needs: nothing is kept of it.
        needed = (SeedEachIteration, hooks.LRScheduler)
        trainer._hooks = [hook for hook in trainer._hooks if isinstance(hook, needed)]
        try:
            TrainerBase.train(trainer, 0, after)
            recorder = _recorder(unwrap(trainer._trainer.model), calls)
            with patch.object(RankingLoss, "forward_indexed", recorder):
                TrainerBase.train(trainer, after, after + 1)
        except FloatingPointError as error:
            raise BucketRankError(
                f"Training diverged in iteration {trainer.iter}, before the step to profile; take "
                "an earlier one with --after."
            ) from error
    if not calls:
        raise BucketRankError(
            f"The detector of {config} has no ranking criterion: set MODEL.RANKING.LOSS to a "
            "ranking loss."
        )
    return calls


def _recorder(
    model: torch.nn.Module, calls: list[dict[str, Any]]
) -> Callable[..., dict[str, Tensor]]:
    """`RankingLoss.forward_indexed`, but the arguments of every call are kept."""
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
        given = {"positives": positives, "qualities": qualities, "ignored_rows": ignored_rows}
        kept = {"logits": logits, **given, "box_losses": box_losses}
        kept = {name: v if v is None else v.detach().clone() for name, v in kept.items()}
        calls.append({"head": heads[id(loss)], **kept})
        return forward(loss, logits, **given, box_losses=box_losses)

    return record
