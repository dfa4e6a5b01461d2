"""One forward and backward pass of each loss, as its users call it."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional as F

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


def algorithm_of(loss: str) -> str:
    """loop, bucketed or exact; the name itself for what is no ranking loss."""
    return LOSS_NAMES[loss][1] if loss in LOSS_NAMES else loss


def loop_of(loss: str) -> str | None:
    """The loss of the same objective that goes through the positives one by one."""
    objective = LOSS_NAMES[loss][0] if loss in LOSS_NAMES else None
    return next((name for name, kind in LOSS_NAMES.items() if kind == (objective, "loop")), None)


class LossCalls:
    """Makes calls that do one pass of a loss over a case and leave nothing behind."""

    def __init__(self, case: Case) -> None:
        self._case = case

    @cached_property
    def _targets(self) -> Tensor:  # the same for all losses and passes
        targets, ignored = self._case.dense_targets(), self._case.ignored_rows
        return targets if ignored is None else targets[~ignored]

    def build(self, loss: str) -> Call:
        """One pass of a loss of ALL_LOSSES."""
        logits = self._case.logits.detach()
        if loss == "sort":
            return partial(torch.sort, logits.reshape(-1))
        logits.requires_grad_()
        boxes = self._case.box_losses.detach().requires_grad_()
        kind = self._ranking if loss in LOSS_NAMES else self._score_based
        total = kind(loss, logits, boxes)

        def call() -> None:
            total().backward()
            logits.grad = boxes.grad = None

        return call

    def _ranking(self, name: str, logits: Tensor, boxes: Tensor) -> Callable[[], Tensor]:
        loss = RankingLoss(name)
        given = self._case.positives, self._case.qualities, self._case.ignored_rows
        box_losses = boxes if loss.objective == "alrp" else None
        return lambda: sum(loss.forward_indexed(logits, *given, box_losses).values())

    def _score_based(self, name: str, logits: Tensor, boxes: Tensor) -> Callable[[], Tensor]:
        loss = _focal_loss() if name == "focal" else F.binary_cross_entropy_with_logits
        case, targets = replace(self._case, logits=logits), self._targets
        count = max(1, case.num_positives)
        # Selecting belongs to the pass, as in Detectron2's RetinaNet.
        return lambda: loss(case.valid_logits, targets, reduction="sum") / count


def _focal_loss() -> Callable[..., Tensor]:
    with warnings.catch_warnings():
        # Of fvcore, at its import: it scripts functions that are not used here.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        from fvcore.nn import sigmoid_focal_loss
    return partial(sigmoid_focal_loss, alpha=0.25, gamma=2)
