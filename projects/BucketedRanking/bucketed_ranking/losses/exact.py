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

from typing import NamedTuple

import torch
from torch import Tensor

from .definition import ALRP_MIN_FALSE_POSITIVES
from .dominance import dominance_sums
from .relations import LocalisationTerm, RankingTerm, interpolate, own_relation
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


class Profile(NamedTuple):
    """A piecewise-linear function of the logit: base + slope * offset in each of K + 1 bins."""

    base: Tensor
    slope: Tensor


class ExactTerm(NamedTuple):
    """A loss, the gradients of the positives, and that of a negative as a function of its logit."""

    loss: Tensor
    positive_grad: Tensor
    negative_grad: Profile


class Bins:
    """The breakpoints of the positives' relations, and sums of relations by way of them.

    Args:
        positives: logits [P], P >= 1, float32 or float64.
        delta: half-width of the relation, >= 0. At 0 the positives themselves are the borders.
    """

    def __init__(self, positives: Tensor, delta: float) -> None:
        self.delta = delta
        self.logits = positives
        self.lowest = lowest_relevant(positives, delta)
        self.positives = positives.to(_table_dtype(positives))
        steps, count = self.positives, positives.numel()
        error = torch.zeros_like(steps)
        if delta > 0:
            low, low_error = _add(self.positives, -delta)
            high, high_error = _add(self.positives, delta)
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

    def locate(self, logits: Tensor) -> Located:
        """Bins of logits [N] of the positives' type. Overwrites ``logits``."""
        # Above the last border every logit is alike; this makes infinite ones harmless.
        top = torch.nextafter(self.edges[-1], self.edges.new_full((), torch.inf))
        logits.clamp_(max=top)
        bins = count_below(self.edges, logits, inclusive=self.delta == 0)
        if self.delta == 0:
            return Located(bins, torch.zeros_like(logits))
        below = torch.cat([self.edges[:1], self.edges])
        return Located(bins, logits.sub_(below.index_select(0, bins)))

    def histogram(
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

    def sum_above(self, histogram: Histogram) -> Tensor:
        """[P]: for every positive, the (weighted) sum of H(x - s_i) over the histogram's logits."""
        above = _sum_from_end(histogram.weights[1:])
        if self.delta == 0:
            return above[self._low]
        areas = torch.where(self._inside, histogram.offsets[1:-1] + self._widths * above[1:], 0)
        integral = torch.cat([_sum_from_end(areas), areas.new_zeros(1)])
        return (integral[self._low] - integral[self._high]) / (2 * self.delta)

    def spread(self, weights: Tensor) -> Profile:
        """The sum over positives i of weights_i H(x - s_i), as a function of x."""
        zero = weights.new_zeros(1)
        if self.delta == 0:
            base = torch.cat([zero, weights[self._order].cumsum(0)])
            return Profile(base, torch.zeros_like(base))
        density = torch.cat([weights, -weights])[self._order].cumsum(0)[:-1] / (2 * self.delta)
        density = torch.where(self._inside, density, 0)
        slope = torch.cat([zero, density, zero])
        base = torch.cat([zero, zero, (density * self._widths).cumsum(0)])
        base[1:] += slope[1:] * self._gap
        return Profile(base, slope)

    def read(self, profile: Profile, located: Located) -> Tensor:
        """[N]: the profile's value at each logit, in the logits' type."""
        dtype = located.offsets.dtype
        base = profile.base.to(dtype).index_select(0, located.bins)
        if self.delta == 0:
            return base
        slope = profile.slope.to(dtype).index_select(0, located.bins)
        return base.addcmul_(slope, located.offsets)


def lowest_relevant(positives: Tensor, delta: float) -> Tensor:
    """Scalar below which no negative has an effect: min_i s_i - delta, and a little less, so that
    rounding to the type of the logits loses none."""
    lowest = positives.min().to(_table_dtype(positives)) - delta
    margin = lowest.abs() * (2 * torch.finfo(positives.dtype).eps)
    return lowest - margin


def average_precision(bins: Bins, negatives: Histogram, interpolated: bool) -> ExactTerm:
    """AP Loss of the positives in ``bins``; see ``definition.average_precision``."""
    located = bins.locate(bins.logits.clone())
    rank_positive = bins.sum_above(bins.histogram(located)) + (1 - own_relation(bins.delta))
    false_positives = bins.sum_above(negatives).clamp(min=0)
    rank = rank_positive + false_positives
    error, share = false_positives / rank, 1 / rank
    if interpolated:
        least = interpolate(bins.positives, error)
        error, share = least, torch.where(least < error, least / false_positives, share)
    return _term(bins, error, error, share)


def localisation_recall_precision(
    bins: Bins, box_losses: Tensor, negatives: Histogram
) -> tuple[ExactTerm, LocalisationTerm]:
    """aLRP Loss of the positives in ``bins``; see ``definition.localisation_recall_precision``."""
    box_losses = box_losses.to(bins.positives.dtype)
    rest = 1 - own_relation(bins.delta)
    located = bins.locate(bins.logits.clone())
    rank_positive = bins.sum_above(bins.histogram(located)) + rest
    box_sum = bins.sum_above(bins.histogram(located, box_losses)) + rest * box_losses
    false_positives = bins.sum_above(negatives).clamp(min=0)
    rank = rank_positive + false_positives
    spreads = false_positives > ALRP_MIN_FALSE_POSITIVES
    update = torch.where(spreads, (box_sum - box_losses + false_positives) / rank, 0)
    share = torch.where(spreads, update / false_positives, 0)
    box_grad = (bins.read(bins.spread(1 / rank), located) + rest / rank) / rank.numel()
    classification = _term(bins, false_positives / rank, update, share)
    return classification, LocalisationTerm((box_sum / rank).mean(), box_grad)


def rank_sort(bins: Bins, qualities: Tensor, negatives: Histogram) -> tuple[ExactTerm, RankingTerm]:
    """RS Loss of the positives in ``bins``; see ``definition.rank_sort``.

    With ``misplaced`` the sum of the relations of the positives wrongly above i, i's sorting error
    is misplaced x share, where share = (their mean deficit in quality - the mean deficit of those
    rightly above) / rank+: a form in which nothing cancels.
    """
    scores, delta = bins.positives, bins.delta
    qualities = qualities.to(scores.dtype)
    weights = torch.stack([torch.ones_like(qualities), 1 - qualities])
    wrongly_above, all_above = dominance_sums(scores, qualities, weights, delta)
    (misplaced, deficit), (rank_positive, total_deficit) = wrongly_above, all_above
    false_positives = bins.sum_above(negatives).clamp(min=0)
    rank = rank_positive + false_positives
    error = false_positives / rank

    wrong = (deficit / misplaced).clamp(0, 1)
    right = (total_deficit - deficit) / (rank_positive - misplaced)
    share = torch.where(misplaced > 0, (wrong - right) / rank_positive, 0)
    sorting_error = misplaced * share
    # H(a - b) seen from the other end: the same sums over the mirrored axes.
    received = dominance_sums(-scores, -qualities, share[None], delta).below[0]
    sorting_grad = (received - sorting_error) / scores.numel()
    sorting = RankingTerm(sorting_error.mean(), sorting_grad, None)
    return _term(bins, error, error, 1 / rank), sorting


def _term(bins: Bins, error: Tensor, update: Tensor, share: Tensor) -> ExactTerm:
    """Mean error; each positive's update is taken from it and given to the negatives by share."""
    count = error.numel()
    return ExactTerm(error.mean(), -update / count, bins.spread(share / count))


def _table_dtype(logits: Tensor) -> torch.dtype:
    return torch.float32 if logits.device.type == "mps" else torch.float64


def _add(values: Tensor, step: float) -> tuple[Tensor, Tensor]:
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
