"""What the ranking losses of a detector are given in one step of training."""

import tempfile
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import TrainerBase, hooks

from ..criterion import RankingCriterion
from ..errors import BucketRankError
from . import setup
from .hooks import SeedEachIteration, unwrap
from .run_logging import run_logging
from .trainer import Trainer


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

    The detector is trained with rs-exact unless the options set MODEL.RANKING.LOSS.

    Args:
        config: see `zoo.find_config`.
        dataset: a data set with splits; None: the config's own.
        options: KEY VALUE pairs.
        after: iterations of training before the step.

    Returns:
        For each call the class of its "head" and the arguments of `RankingLoss.forward_indexed`.

    Raises:
        BucketRankError: config, data set or options are not there or do not fit, training diverges,
            or the detector has no ranking loss.
    """
    cfg = setup.load_config(config, loss="rs-exact", options=options, device=device)
    setup.configure_datasets(cfg, *setup.choose_datasets(cfg, dataset, None, None))
    cfg.SEED = seed
    calls: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, run_logging(Path(folder)):
        cfg.OUTPUT_DIR = folder
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        # Of the trainer's own hooks, only what training itself needs: nothing is kept of it.
        needed = (SeedEachIteration, hooks.LRScheduler)
        trainer._hooks = [hook for hook in trainer._hooks if isinstance(hook, needed)]
        try:
            TrainerBase.train(trainer, 0, after)
            _record_calls(unwrap(trainer._trainer.model), calls)
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


def _record_calls(model: torch.nn.Module, calls: list[dict[str, Any]]) -> None:
    """Keep the arguments of every call of the model's ranking losses from now on."""
    for name, criterion in model.named_modules():
        if isinstance(criterion, RankingCriterion):
            head = type(model.get_submodule(name.rpartition(".")[0])).__name__
            loss = criterion.loss
            loss.forward_indexed = _recorded(loss.forward_indexed, head, calls)


def _recorded(forward: Callable, head: str, calls: list[dict[str, Any]]) -> Callable:
    def record(*given: Any, **named: Any) -> dict[str, torch.Tensor]:
        arguments = signature(forward).bind(*given, **named).arguments
        del arguments["group"]  # of one process
        kept = {name: v if v is None else v.detach().clone() for name, v in arguments.items()}
        calls.append({"head": head, **kept})
        return forward(*given, **named)

    return record
