"""Dominance sums: what the sorting part of RS needs, without comparing every pair of positives.

For every point i, the sum of H(s_k - s_i) w_k over {k : t_k < t_i}, and over the other k. It has a
one-sided condition on the key t and a piecewise-linear function of the score s: a two-dimensional
dominance sum. Two routes lead to it, and ``CROSSOVER`` says which one is taken.

Six points, delta 2, so that H(x) = x/4 + 1/2 for x between -2 and 2:

    point               a    b    c    d    e    f
    score s             0    1    2    3    4    5
    place by key t      3    0    4    1    5    2
    H(s_k - s_c)        0   1/4  1/2  3/4   1    1

For i = c, the points of smaller keys are those of places 0 to 3: the sums are w_b/4 + 3 w_d/4 + w_f
and, over the others, w_c/2 + w_e. The tree finds the first by bits. In the order of scores, b, c, d
lie on the slope of H and e, f above it. c's place is 100 in bits. The first bit parts the points
into those with a 0, a b d f, and those with a 1, c e, each still in the order of scores. As c's
own bit is 1, all those with a 0 have smaller keys: of the slope they are b, d, of the rest f. Each
is a range in a b d f, so two differences of prefix sums, of w and of w s, give their sums. c goes
on among c e: its other bits are 0, and nothing more is below it.

The gradient runs the other way: positive k receives the sum of H(s_k - s_i) v_i over
{i : t_i > t_k}. With s' = -s and t' = -t that is the sum of H(s'_i - s'_k) v_i over
{i : t'_i < t'_k}: the same sums, over mirrored points.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .relations import relation

CROSSOVER = 256
"""Up to this many points every pair is compared; beyond it, the tree is faster. Milliseconds on one
CPU core, for two rows of weights in float64, pairs and tree: 128 points 0.1 and 1.0, 256 points 0.2
and 1.4, 512 points 5.1 and 1.7, 1,000 points 5.7 and 2.6, 5,000 points 247 and 8.4."""

_PAIRS_AT_ONCE = 1 << 18
_BLOCK_BITS = 3
"""The tree ends in blocks of 8 neighbours in the order of keys, which are compared one by one: its
last levels cost as much as its first and part next to nothing."""


def dominance_sums(
    scores: Tensor, keys: Tensor, weights: Tensor, delta: float
) -> tuple[Tensor, Tensor]:
    """For every point i, sums of H_delta(scores_k - scores_i) w_k over the points k of a smaller
    key than i, and over all others, i included.

    Args:
        scores: [P], P >= 1.
        keys: [P].
        weights: [M, P] in the type of ``scores``.
        delta: half-width of the relation, >= 0.

    Returns:
        The two sums, each [M, P].
    """
    route = compare_pairs if scores.numel() <= CROSSOVER else walk_tree
    return route(scores, keys, weights, delta)


def compare_pairs(
    scores: Tensor, keys: Tensor, weights: Tensor, delta: float
) -> tuple[Tensor, Tensor]:
    """``dominance_sums`` in O(P^2) time, a few rows at a time: O(P) memory beside a fixed block."""
    rows = max(1, _PAIRS_AT_ONCE // scores.numel())
    below, others = [], []
    for score, key in zip(scores.split(rows), keys.split(rows), strict=True):
        above = relation(scores - score[:, None], delta)
        of_smaller = above * (keys < key[:, None])
        below.append(weights @ of_smaller.T)
        others.append(weights @ (above - of_smaller).T)
    return torch.cat(below, dim=1), torch.cat(others, dim=1)


def walk_tree(scores: Tensor, keys: Tensor, weights: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """``dominance_sums`` in O(P log P) time and O(P) memory.

    A merge-sort tree over the points, laid out by bits (a wavelet matrix: Claude, Navarro and
    Ordonez, Information Systems 2015). The points stand in the order of their scores, and level by
    level they are parted, stably, by one bit of their place in the order of keys. A range of scores
    stays a range on every level, so its sums over a prefix of keys are a few differences of prefix
    sums.
    """
    scores, by_score = scores.sort(stable=True)
    keys, weights = keys[by_score], weights[:, by_score]
    sorted_keys, by_key = keys.sort(stable=True)
    place = torch.empty_like(by_key)
    place[by_key] = torch.arange(keys.numel(), device=keys.device)
    limit = torch.searchsorted(sorted_keys, keys)
    windows = _windows(scores, delta)
    columns = torch.cat([weights, weights * windows.offsets]) if delta > 0 else weights
    back = torch.empty_like(by_score)
    back[by_score] = torch.arange(keys.numel(), device=keys.device)
    ranges = _prefix_sums_of_ranges(place, limit, columns, windows.bounds)
    below = _weigh(ranges, windows, delta) + _sums_in_blocks(scores, by_key, limit, weights, delta)
    total = _weigh(_prefix(columns)[:, windows.bounds].diff(dim=1), windows, delta)
    return below[:, back], (total - below)[:, back]


class _Windows(NamedTuple):
    """Where the relation to each of the ascending scores rises from 0 to 1.

    At most two cells of width 2 delta share the stretch s_i - delta .. s_i + delta. Scores enter as
    distances from the first score of their cell, so neither their level nor their spread costs
    precision.
    """

    bounds: Tensor
    """[4, P]: where the first cell's part begins, the second's begins and ends, and P. For delta 0
    [2, P]: the first score at or above, and P."""
    offsets: Tensor
    """[P]: each score's distance from the first in its cell."""
    rises: Tensor
    """[2, P]: from the start of the stretch to the first score of either cell."""


def _windows(scores: Tensor, delta: float) -> _Windows:
    count = scores.numel()
    everything = torch.full((count,), count, device=scores.device)
    if delta == 0:
        first = torch.searchsorted(scores, scores)
        return _Windows(torch.stack([first, everything]), scores, scores)
    low = scores - delta
    cells = ((scores - scores[0]) / (2 * delta)).floor()
    low_cells = ((low - scores[0]) / (2 * delta)).floor()
    begin = torch.searchsorted(scores, low, right=True)
    end = torch.searchsorted(scores, scores + delta)
    middle = torch.searchsorted(cells, low_cells, right=True).minimum(end)
    upper = middle.clamp(max=count - 1)
    # Rounding may let a stretch reach a third cell; H is 1 there but for that rounding.
    end = end.minimum(torch.searchsorted(cells, cells[upper], right=True)).maximum(middle)
    anchors = scores[torch.searchsorted(cells, cells)]
    lower = begin.clamp(max=count - 1)
    rises = torch.stack([anchors[lower], anchors[upper]]) - scores + delta
    return _Windows(torch.stack([begin, middle, end, everything]), scores - anchors, rises)


def _weigh(sums: Tensor, windows: _Windows, delta: float) -> Tensor:
    """[M, P] sums of H w, from the sums of w and of w x offset over each part of the windows."""
    if delta == 0:
        return sums[:, 0]
    weights, moments = sums.chunk(2)
    rising = moments[:, :2] + weights[:, :2] * windows.rises
    return rising.sum(1) / (2 * delta) + weights[:, 2]


def _prefix_sums_of_ranges(place: Tensor, limit: Tensor, weights: Tensor, bounds: Tensor) -> Tensor:
    """[M, R - 1, P]: sums of ``weights`` [M, P] over ranges of points and a prefix of places.

    For query i and range r, over {k : bounds_r,i <= k < bounds_r+1,i and place_k < limit_i}, where
    limits are rounded down to whole blocks.
    """
    count, ranges = place.numel(), bounds.shape[0] - 1
    index = torch.arange(count, device=place.device)
    rows = weights.T.contiguous()  # points first: what is gathered together lies together
    sums = rows.new_zeros(ranges, count, rows.shape[1])
    for bit in reversed(range(_BLOCK_BITS, count.bit_length())):
        zero = (place >> bit) & 1 == 0
        zeros_before = _prefix(zero.long())
        zeros = zeros_before[-1]
        target = torch.where(zero, zeros_before[:-1], zeros + index - zeros_before[:-1])
        place = torch.empty_like(place).scatter_(0, target, place)
        rows = torch.empty_like(rows).index_copy_(0, target, rows)
        zero_bounds = zeros_before.index_select(0, bounds.flatten())
        one = (limit >> bit) & 1 == 1
        # Where the limit has a one, every point of the range with a zero lies below it.
        before = pad(rows.cumsum(0), (0, 0, 1, 0)).index_select(0, zero_bounds)
        sums.addcmul_(before.view(ranges + 1, count, -1).diff(dim=0), one[:, None].to(rows.dtype))
        zero_bounds = zero_bounds.view_as(bounds)
        bounds = torch.where(one, zeros + bounds - zero_bounds, zero_bounds)
    return sums.permute(2, 0, 1)


def _sums_in_blocks(
    scores: Tensor, by_key: Tensor, limit: Tensor, weights: Tensor, delta: float
) -> Tensor:
    """[M, P]: what :func:`_prefix_sums_of_ranges` leaves out, the places from a whole block to the
    limit; ``by_key`` holds the point at each place."""
    size = 1 << _BLOCK_BITS
    places = (limit // size * size)[:, None] + torch.arange(size, device=limit.device)
    inside = places < limit[:, None]
    points = by_key.index_select(0, places.clamp_(max=len(by_key) - 1).flatten())
    above = relation(scores.index_select(0, points).view(-1, size) - scores[:, None], delta)
    above *= inside
    rows = weights.index_select(1, points).view(-1, *above.shape)
    return (rows * above).sum(dim=-1)


def _prefix(values: Tensor) -> Tensor:
    """[..., n + 1]: sums of the first 0, 1, ... n values."""
    return pad(values.cumsum(-1), (1, 0))
