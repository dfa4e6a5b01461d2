"""One forward and backward pass of each loss, as its users call it."""

import warnings
from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import BucketRankError
from ..losses import LOSS_NAMES, RankingLoss
from .loss_cases import Case
from .timing import Call

REFERENCES = {
    "focal": "fvcore.nn.sigmoid_focal_loss, eager, alpha 0.25, gamma 2, sum / number of positives",
    "ce": "torch binary_cross_entropy_with_logits, sum / number of positives",
    "sort": "one torch.sort of all logits, forward only: a yardstick, not a loss",
}
"""What stands beside the ranking losses, and what it is."""

ALL_LOSSES = (*LOSS_NAMES, *REFERENCES)


def parse_losses(text: str) -> list[str]:
    """Names of losses from "rs,brs,focal", each once.

    Raises:
        BucketRankError: one of them is not in ALL_LOSSES.
    """
    names = list(dict.fromkeys(word.strip() for word in text.split(",")))
    for name in names:
        if name not in ALL_LOSSES:
            raise BucketRankError(
                f"There is no loss {name!r} to profile; choose among {', '.join(ALL_LOSSES)}."
            )
    return names


def algorithm_of(loss: str) -> str:
    """loop, bucketed or exact; the name itself for what is no ranking loss."""
    return LOSS_NAMES[loss][1] if loss in LOSS_NAMES else loss


def loop_of(loss: str) -> str | None:
    """The loss of the same objective that goes through the positives one by one."""
    if loss not in LOSS_NAMES:
        return None
    objective = LOSS_NAMES[loss][0]
    return next(name for name, kind in LOSS_NAMES.items() if kind == (objective, "loop"))


class LossCalls:
    """Makes calls that do one pass of a loss over a case and leave nothing behind."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def build(self, loss: str) -> Call:
        """One pass of a loss of ALL_LOSSES."""
        case = self._case
        logits = case.logits.detach()
        if loss == "sort":
            return partial(torch.sort, logits.reshape(-1))
        logits.requires_grad_()
        if loss in LOSS_NAMES:
            return _ranking(RankingLoss(loss), logits, case)
        function = _focal() if loss == "focal" else _cross_entropy
        return _score_based(function, logits, case, self._targets)

    @cached_property
    def _targets(self) -> Tensor:  # the same for all losses and passes
        return self._case.dense_targets()


def _ranking(loss: RankingLoss, logits: Tensor, case: Case) -> Call:
    boxes = case.box_losses.detach().requires_grad_() if loss.objective == "alrp" else None

    def call() -> None:
        values = loss.forward_indexed(
            logits, case.positives, case.qualities, case.ignored_rows, boxes
        )
        torch.stack(list(values.values())).sum().backward()
        logits.grad = None
        if boxes is not None:
            boxes.grad = None

    return call


def _score_based(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, case: Case, targets: Tensor
) -> Call:
    valid = None if case.ignored_rows is None else ~case.ignored_rows
    if valid is not None:
        targets = targets[valid]
    count = max(1, case.num_positives)

    def call() -> None:
        # Selecting belongs to the pass, as in Detectron2's RetinaNet.
        predictions = logits if valid is None else logits[valid]
        (loss(predictions, targets) / count).backward()
        logits.grad = None

    return call


def _focal() -> Callable[[Tensor, Tensor], Tensor]:
    with warnings.catch_warnings():
        # Of fvcore, at its import: it scripts functions that are not used here.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        from fvcore.nn import sigmoid_focal_loss

    def focal(logits: Tensor, targets: Tensor) -> Tensor:
        return sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2, reduction="sum")

    return focal


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
