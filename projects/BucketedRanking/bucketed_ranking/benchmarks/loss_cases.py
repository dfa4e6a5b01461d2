"""The input that losses are timed on: made-up logits, positives, qualities and box losses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

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
        qualities, box_losses: [P], in (0, 1] and [0, 1].
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
        if self.num_positives == 0:
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
