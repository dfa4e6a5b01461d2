"""BAP and BRS as published: every bucket of negatives acts through its mean logit.

"Bucketed Ranking-based Losses for Efficient Training of Object Detectors", Yavuz et al., ECCV 2024,
section 4. The negatives between two neighbouring positives form one bucket, at most P + 1 in all;
its prototype, the mean logit weighted by the bucket's size, stands in for its members. Gradients
equal those of the definition for delta = 0 (the paper's theorem) and approximate them otherwise.

Where the paper's public code and its own AP baseline disagree, the baseline stands: a positive
counts as 1 in its own rank in BAP, as in AP (the public BAP code counts it as H(0) = 1/2).

Memory and time hold the published P x P relations; ``exact`` does without them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .relations import RankingTerm, interpolate, own_relation, relation


class _Buckets(NamedTuple):
    member_of: Tensor
    """[N] bucket of each negative: the number of positives that it scores no lower than."""
    sizes: Tensor
    """[P + 1] number of negatives."""
    means: Tensor
    """[P + 1] mean logit; any finite value where the bucket is empty."""


def average_precision(
    positives: Tensor, negatives: Tensor, delta: float, interpolated: bool
) -> RankingTerm:
    """BAP: AP Loss with negatives bucketed (Yavuz et al., ECCV 2024, section 4).

    Takes positives' logits [P], P >= 1, and negatives' logits [N]; see ``definition`` for the loss.
    """
    buckets = _make_buckets(positives, negatives)
    above = relation(buckets.means - positives[:, None], delta)
    rank_positive = relation(positives - positives[:, None], delta).sum(1)
    rank_positive = rank_positive + (1 - own_relation(delta))
    false_positives = above @ buckets.sizes
    rank = rank_positive + false_positives
    error, share = false_positives / rank, 1 / rank
    if interpolated:
        least = interpolate(positives, error)
        error, share = least, torch.where(least < error, least / false_positives, share)
    return _spread(error, share, above, buckets)


def rank_sort(
    positives: Tensor, qualities: Tensor, negatives: Tensor, delta: float
) -> tuple[RankingTerm, RankingTerm]:
    """BRS: RS Loss with negatives bucketed, ranking and sorting part (ECCV 2024, section 4).

    Takes positives' logits and qualities [P], P >= 1, and negatives' logits [N]; see ``definition``
    for the loss. The sorting part concerns the positives alone and is not bucketed.
    """
    buckets = _make_buckets(positives, negatives)
    above = relation(buckets.means - positives[:, None], delta)
    others = relation(positives - positives[:, None], delta)
    false_positives = above @ buckets.sizes
    rank = others.sum(1) + false_positives
    ranking = _spread(false_positives / rank, 1 / rank, above, buckets)
    return ranking, _sorting_part(others, qualities)


def _make_buckets(positives: Tensor, negatives: Tensor) -> _Buckets:
    ascending = positives.sort().values
    member_of = torch.searchsorted(ascending, negatives, right=True)
    count = positives.numel() + 1
    # Counts and sums over up to 1e8 negatives need more than float32; MPS has nothing wider.
    precise = torch.float32 if positives.device.type == "mps" else torch.float64
    sizes = torch.zeros(count, dtype=precise, device=positives.device)
    sums = torch.zeros_like(sizes)
    sizes.index_add_(0, member_of, torch.ones_like(negatives, dtype=precise))
    sums.index_add_(0, member_of, negatives.to(precise))
    means = (sums / sizes.clamp(min=1)).to(positives.dtype)
    # A mean lies between the bucket's two positives; rounding must not carry it past either, or
    # the theorem for delta = 0 would fail on ties.
    ceiling = ascending.new_full((1,), torch.inf)
    floor = -ceiling
    below = torch.nextafter(ascending, floor)
    means = means.clamp(torch.cat([floor, ascending]), torch.cat([below, ceiling]))
    return _Buckets(member_of, sizes.to(positives.dtype), means)


def _spread(error: Tensor, share: Tensor, above: Tensor, buckets: _Buckets) -> RankingTerm:
    """Hands each positive's error to the buckets above it, and each bucket's to its members."""
    count = error.numel()
    per_member = (share @ above) / count
    return RankingTerm(error.mean(), -error / count, per_member[buckets.member_of])


def _sorting_part(others: Tensor, qualities: Tensor) -> RankingTerm:
    """The sorting error of each positive, taken from it and given to the positives misplaced."""
    misplaced = others * (qualities < qualities[:, None])
    rightly_above = others - misplaced
    deficit = 1 - qualities
    current = (others @ deficit) / others.sum(1)
    target = (rightly_above @ deficit) / rightly_above.sum(1)
    weight = misplaced.sum(1)
    error = torch.where(weight > 0, current - target, 0)
    share = torch.where(weight > 0, error / weight, 0)
    count = qualities.numel()
    return RankingTerm(error.mean(), (share @ misplaced - error) / count, None)
