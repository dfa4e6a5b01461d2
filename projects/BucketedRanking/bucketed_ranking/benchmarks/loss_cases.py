"""What losses are timed on, and what is timed: one forward and backward pass of each."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from ..losses import LOSS_NAMES, RankingLoss
from .timing import Call

REFERENCES = {
    "focal": "fvcore.nn.sigmoid_focal_loss, eager, alpha 0.25, gamma 2, sum / number of positives",
    "ce": "torch binary_cross_entropy_with_logits, sum / number of positives",
    "sort": "one torch.sort of all logits, forward only: a yardstick, not a loss",
}
"""What stands beside the ranking losses, and what it is."""

ALL_LOSSES = (*LOSS_NAMES, *REFERENCES)

NUM_CLASSES = 80  # columns of made-up logits, as on COCO
POSITIVE_MEAN = -1.0
NEGATIVE_MEANS = {"start": -1.0, "trained": -5.0}
"""Mean logit of the negatives by regime. Every logit has a standard deviation of 1: at the start of
training almost every negative is relevant, in a trained detector few are."""


@dataclass(frozen=True)
class GridPoint:
    """The size and kind of a made-up case."""

    regime: str
    positives: int
    negatives: int

    def __str__(self) -> str:
        return f"{self.regime}: P = {self.positives:,}, N = {self.negatives:,}"


@dataclass(frozen=True)
class Case:
    """The input of all losses.

    Attributes:
        name: what it is, for people.
        logits: [A, C].
        positives: int64 [P], flat indices into `logits`.
        qualities, box_losses: [P], in (0, 1] and [0, 2].
        ignored_rows: bool [A], or None for none.
        grid_point: where it is made up.
    """

    name: str
    logits: Tensor
    positives: Tensor
    qualities: Tensor
    box_losses: Tensor
    ignored_rows: Tensor | None = None
    grid_point: GridPoint | None = None

    @property
    def num_positives(self) -> int:
        return self.positives.numel()

    @property
    def valid_logits(self) -> Tensor:
        """The rows that are not ignored."""
        return self.logits if self.ignored_rows is None else self.logits[~self.ignored_rows]

    @property
    def num_negatives(self) -> int:
        return self.valid_logits.numel() - self.num_positives

    def relevant_negatives(self, delta: float = 0.5) -> int:
        """How many negatives are not `delta` (RS Loss's half-width) or more below every positive:
        the others cost next to nothing."""
        if self.num_positives == 0 or self.logits.is_meta:
            return 0
        lowest = self.logits.reshape(-1)[self.positives].min() - delta
        return int((self.valid_logits > lowest).sum()) - self.num_positives

    def dense_targets(self) -> Tensor:
        """[A, C] in the type of the logits: 1 for a positive, 0 for everything else."""
        targets = torch.zeros_like(self.logits, memory_format=torch.contiguous_format)
        targets.view(-1)[self.positives] = 1
        return targets

    def thinned(self, count: int) -> "Case":
        """The case with the lowest positive and `count` - 1 others; the rest become negatives.

        The relevant logits stay the same, so what a loss does once a positive costs the same.
        """
        lowest = self.logits.reshape(-1)[self.positives].argmin()
        kept = torch.arange(self.num_positives, device=lowest.device)[:count]
        if count <= lowest:
            kept[-1] = lowest
        names = ("positives", "qualities", "box_losses")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})


def make_grid(regime: str, positives: Sequence[int], negatives: Sequence[int]) -> list[GridPoint]:
    """Every combination; `regime` is one of NEGATIVE_MEANS or "both"."""
    regimes = list(NEGATIVE_MEANS) if regime == "both" else [regime]
    return [GridPoint(*point) for point in product(regimes, positives, negatives)]


def make_case(point: GridPoint, *, dtype: torch.dtype, device: str, seed: int) -> Case:
    """A made-up case: logits [A, 80] with positives anywhere, qualities and box losses uniform.

    The last row is filled up with negatives: at most 79 more than asked for. The numbers depend on
    the point and the seed, not on the device.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = -(-(point.positives + point.negatives) // NUM_CLASSES)
    total = rows * NUM_CLASSES
    logits = torch.randn(total, generator=generator).add_(NEGATIVE_MEANS[point.regime])
    # One place in each of P equal stretches: no place twice.
    stretch = total // point.positives
    positives = torch.arange(point.positives) * stretch
    positives += torch.randint(stretch, (point.positives,), generator=generator)
    positives = positives[torch.randperm(point.positives, generator=generator)]
    logits[positives] = torch.randn(point.positives, generator=generator).add_(POSITIVE_MEAN)
    qualities = 1 - torch.rand(point.positives, generator=generator)
    box_losses = torch.rand(point.positives, generator=generator)
    columns = (value.to(device) for value in (positives, qualities, box_losses))
    logits = logits.view(rows, NUM_CLASSES).to(device, dtype)
    return Case(str(point), logits, *columns, grid_point=point)


def unmade_case(point: GridPoint) -> Case:
    """What stands for a case that is too large to be made: tensors of its sizes without numbers."""
    logits = torch.empty(point.positives + point.negatives, 1, device="meta")
    return Case(str(point), logits, *[logits[: point.positives, 0]] * 3, grid_point=point)


def algorithm_of(loss: str) -> str:
    """loop, bucketed or exact; the name itself for what is no ranking loss."""
    return LOSS_NAMES.get(loss, (None, loss))[1]


def loop_of(loss: str) -> str | None:
    """The loss of the same objective that goes through the positives one by one."""
    loop = LOSS_NAMES.get(loss, (None, None))[0], "loop"
    return next((name for name, kind in LOSS_NAMES.items() if kind == loop), None)


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
