"""BAP and BRS as published: every bucket of negatives acts through its mean logit.

"Bucketed Ranking-based Losses for Efficient Training of Object Detectors", Yavuz et al., ECCV 2024,
section 4. The negatives between two neighbouring positives form one bucket, at most P + 1 in all;
its prototype, the mean logit weighted by the bucket's size, stands in for its members. Gradients
equal those of the definition for delta = 0 (the paper's theorem) and approximate them otherwise.

Where the paper's public code and its own AP baseline disagree, the baseline stands: a positive
counts as 1 in its own rank in BAP, as in AP (the public BAP code counts it as H(0) = 1/2).

Memory and time hold the published P x P relations; ``exact`` does without them.
"""

import torch
from torch import Tensor

from .objective import Tables
from .relations import relation, table_dtype


class Buckets(Tables):
    """Sums of relations to the positives and to the buckets' means."""

    def __init__(self, positives: Tensor, delta: float) -> None:
        super().__init__(positives, delta)
        self._others = relation(positives - positives[:, None], delta)

    def add(self, negatives: Tensor) -> None:
        ascending = self.positives.sort().values
        # The bucket of each negative: the number of positives that it scores no lower than.
        self._bucket_of = torch.searchsorted(ascending, negatives, right=True)
        precise = table_dtype(negatives)
        sizes = torch.zeros(len(ascending) + 1, dtype=precise, device=negatives.device)
        sums = torch.zeros_like(sizes)
        sizes.index_add_(0, self._bucket_of, torch.ones_like(negatives, dtype=precise))
        sums.index_add_(0, self._bucket_of, negatives.to(precise))
        means = (sums / sizes.clamp(min=1)).to(negatives.dtype)
        # A mean lies between the bucket's two positives; rounding must not carry it past either, or
        # the theorem for delta = 0 would fail on ties.
        ceiling = ascending.new_full((1,), torch.inf)
        below = torch.nextafter(ascending, -ceiling)
        means = means.clamp(torch.cat([-ceiling, ascending]), torch.cat([below, ceiling]))
        self._sizes = sizes.to(negatives.dtype)
        self._above = relation(means - self.positives[:, None], self.delta)

    def positives_above(self, weights: Tensor | None = None) -> Tensor:
        return self._others.sum(1) if weights is None else self._others @ weights

    def negatives_above(self) -> Tensor:
        return self._above @ self._sizes

    def positives_above_by_quality(
        self, qualities: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        misplaced = self._others * (qualities < qualities[:, None])
        return weights @ misplaced.T, weights @ (self._others - misplaced).T

    def spread_to_worse(self, qualities: Tensor, share: Tensor) -> Tensor:
        return share @ (self._others * (qualities < qualities[:, None]))

    def spread(self, share: Tensor) -> Tensor:
        return ((share @ self._above) / share.numel())[self._bucket_of]
