"""Lossless buckets: AP, aLRP and RS exactly as defined, at every delta, in O((P + N) log P).

H is piecewise linear, so between two neighbouring breakpoints s_i - delta, s_i + delta of the
positives the slope of no relation changes: there, a set of negatives acts on every positive through
its count and the sum of its logits alone, and each negative's gradient is linear in its logit. The
2P breakpoints are the borders of P-sized tables; nothing of size P x N or P x P is ever built.

Two exact identities keep every sum free of cancellation, whatever the level and spread of the
logits (they replace the centring of the logits):

    2 delta sum_j H(x_j - s_i)   = integral of #{j : x_j > y} dy, s_i - delta < y < s_i + delta
    2 delta sum_i w_i H(x - s_i) = integral of sum {w_i : |y - s_i| < delta} dy, y < x

Logits enter only as distances from the border below them. Tables are float64 (float32 on MPS, which
has no float64: about 1e-6 relative there); passes over the negatives stay in the type of the
logits, at least float32.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .dominance import dominance_sums
from .objective import NegativeGrad, Tables
from .relations import table_dtype
from .search import count_below


class Histogram(NamedTuple):
    """What the tables keep of a set of logits: per bin, [K + 1] for K borders."""

    weights: Tensor
    """Number, or sum of weights, of the logits."""
    offsets: Tensor
    """(Weighted) sum of the logits' distances from the border below."""


class Located(NamedTuple):
    """Logits by their bins."""

    bins: Tensor
    """int32 [N]: how many borders lie below each logit."""
    offsets: Tensor
    """[N]: distance from the border below."""


class Bins(Tables):
    """The breakpoints of the positives' relations, and sums of relations by way of them.

    Takes positives as given, and keeps them in the type of the tables; negatives in chunks or not.
    At delta 0 the positives themselves are the borders.

    Attributes:
        negatives: sums over the negatives taken in so far; None before the first. Processes that
            have the same positives may add theirs up, to have those of all negatives.
    """

    def __init__(self, positives: Tensor, delta: float) -> None:
        super().__init__(positives.to(table_dtype(positives)), delta)
        self._logits = positives
        self.negatives: Histogram | None = None
        self._located: Located | None = None
        steps, count = self.positives, positives.numel()
        error = torch.zeros_like(steps)
        if delta > 0:
            low, low_error = _two_sum(self.positives, -delta)
            high, high_error = _two_sum(self.positives, delta)
            steps, error = torch.cat([low, high]), torch.cat([low_error, high_error])
        self.borders, self._order = steps.sort()
        self._error = error[self._order]
        place = _inverse(self._order)
        self._low, self._high = place[:count], place[-count:]
        self.edges = _round_down(self.borders, positives.dtype)
        # From each border, with its rounding error, to the edge that stands for it.
        self._gap = (self.edges.to(self.borders.dtype) - self.borders) - self._error
        if delta > 0:
            self._widths = self.borders.diff() + self._error.diff()
            entering = torch.where(self._order < count, 1, -1)
            self._inside = entering.cumsum(0)[:-1] > 0

    def add(self, negatives: Tensor) -> None:
        located = self._locate(negatives)
        # The bins of one chunk are kept; those of several are searched once more in the end.
        self._located = located if self.negatives is None else None
        self.negatives = self._histogram(located, onto=self.negatives)

    def positives_above(self, weights: Tensor | None = None) -> Tensor:
        return self._sum_above(self._histogram(self._located_positives, weights))

    def negatives_above(self) -> Tensor:
        assert self.negatives is not None
        return self._sum_above(self.negatives).clamp(min=0)

    def positives_above_by_quality(
        self, qualities: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        return dominance_sums(self.positives, qualities, weights, self.delta)

    def spread_to_worse(self, qualities: Tensor, share: Tensor) -> Tensor:
        # H(a - b) seen from the other end: the same sums over the mirrored axes.
        return dominance_sums(-self.positives, -qualities, share[None], self.delta)[0][0]

    def spread(self, share: Tensor) -> NegativeGrad:
        base, slope = self._profile(share / share.numel())

        def read(located: Located) -> Tensor:
            dtype = located.offsets.dtype
            grad = base.to(dtype).index_select(0, located.bins)
            if self.delta == 0:
                return grad
            return grad.addcmul_(slope.to(dtype).index_select(0, located.bins), located.offsets)

        if self._located is not None:
            return read(self._located)
        return lambda negatives: read(self._locate(negatives))

    @cached_property
    def _located_positives(self) -> Located:
        return self._locate(self._logits.clone())

    def _locate(self, logits: Tensor) -> Located:
        """Bins of logits [N] of the positives' type. Overwrites ``logits``."""
        # Above the last border every logit is alike; this makes infinite ones harmless.
        top = torch.nextafter(self.edges[-1], self.edges.new_full((), torch.inf))
        logits.clamp_(max=top)
        bins = count_below(self.edges, logits, inclusive=self.delta == 0)
        if self.delta == 0:
            return Located(bins, torch.zeros_like(logits))
        below = torch.cat([self.edges[:1], self.edges])
        return Located(bins, logits.sub_(below.index_select(0, bins)))

    def _histogram(
        self, located: Located, weights: Tensor | None = None, onto: Histogram | None = None
    ) -> Histogram:
        """Sums per bin over logits that count 1 each or have ``weights`` [N] of the tables' type,
        added to those of the histogram ``onto``."""
        totals = self.borders.new_zeros(self.borders.numel() + 1)
        if weights is None:
            weights = totals.new_ones(()).expand(located.bins.numel())
            offsets = located.offsets.to(totals.dtype)
        else:
            offsets = weights * located.offsets
        sums = totals.clone().index_add_(0, located.bins, offsets)
        totals.index_add_(0, located.bins, weights)
        sums[1:] += totals[1:] * self._gap
        if onto is None:
            return Histogram(totals, sums)
        return Histogram(onto.weights + totals, onto.offsets + sums)

    def _sum_above(self, histogram: Histogram) -> Tensor:
        """[P]: for every positive, the (weighted) sum of H(x - s_i) over the histogram's logits."""
        above = _sum_from_end(histogram.weights[1:])
        if self.delta == 0:
            return above[self._low]
        areas = torch.where(self._inside, histogram.offsets[1:-1] + self._widths * above[1:], 0)
        integral = torch.cat([_sum_from_end(areas), areas.new_zeros(1)])
        return (integral[self._low] - integral[self._high]) / (2 * self.delta)

    def _profile(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over the positives i of weights_i H(x - s_i), as a function of x: in each of the
        bins [K + 1], base + slope * (distance from the border below)."""
        zero = weights.new_zeros(1)
        if self.delta == 0:
            base = torch.cat([zero, weights[self._order].cumsum(0)])
            return base, torch.zeros_like(base)
        density = torch.cat([weights, -weights])[self._order].cumsum(0)[:-1] / (2 * self.delta)
        density = torch.where(self._inside, density, 0)
        slope = torch.cat([zero, density, zero])
        base = torch.cat([zero, zero, (density * self._widths).cumsum(0)])
        base[1:] += slope[1:] * self._gap
        return base, slope


def _two_sum(values: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """values + step, and its rounding error (Knuth's two-sum): the exact sum is theirs together."""
    total = values + step
    added = total - values
    return total, (values - (total - added)) + (step - added)


def _round_down(borders: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest numbers of ``dtype`` at or below the borders: no logit of that type can tell the
    two apart."""
    edges = borders.to(dtype)
    lower = torch.nextafter(edges, edges.new_full((), -torch.inf))
    return torch.where(edges.to(borders.dtype) > borders, lower, edges)


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def _sum_from_end(values: Tensor) -> Tensor:
    """[n]: the sum of each value and all after it. Summing from the top keeps what is smallest, the
    ranks of the best positives, most precise."""
    return values.flip(0).cumsum(0).flip(0)
