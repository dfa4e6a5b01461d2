"""Where the losses meet autograd: one function that assigns the gradients of any ranking loss."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import bucketed, definition, exact
from .relations import LocalisationTerm, RankingTerm


class Ranking(NamedTuple):
    """Which loss to compute, and how."""

    objective: str
    algorithm: str
    delta: float
    interpolated: bool = False
    chunk_size: int | None = None
    """How many logits the exact algorithm looks at at once; None: all."""


class Participants(NamedTuple):
    """What each of the flattened logits is; one that is none of these is a negative."""

    positives: Tensor
    """LongTensor [P]: the places of the positives, in any order, no place twice."""
    qualities: Tensor
    """[P] in (0, 1]."""
    ignored: Tensor | None
    """BoolTensor [R]: which of R equal stretches of logits take no part. A positive always does."""


class _StoredGrad(NamedTuple):
    """The gradients of the relevant negatives, by their places."""

    places: Tensor
    values: Tensor

    def write(self, grad: Tensor, logits: Tensor | None, scale: Tensor) -> None:
        grad.scatter_(0, self.places, (self.values * scale).to(grad.dtype))


class _RecomputedGrad(NamedTuple):
    """The negatives' gradient as a function of the logit, to be read once more, chunk by chunk."""

    bins: exact.Bins
    profile: exact.Profile
    participants: Participants
    chunk_size: int | None

    def write(self, grad: Tensor, logits: Tensor | None, scale: Tensor) -> None:
        assert logits is not None
        chunks = _relevant_negatives(logits, self.participants, self.bins.lowest, self.chunk_size)
        for places, negatives in chunks:
            values = self.bins.read(self.profile, self.bins.locate(negatives))
            grad.scatter_(0, places, (values * scale).to(grad.dtype))


class _Outcome(NamedTuple):
    losses: tuple[Tensor, ...]
    positive_grads: tuple[Tensor, ...]
    """[P] each: what each loss assigns to the positives' logits."""
    box_grad: Tensor | None
    """[P]: what the second loss assigns to the box losses."""
    negative_grad: _StoredGrad | _RecomputedGrad
    """What the first loss assigns to the negatives' logits."""


def ranking_losses(
    ranking: Ranking, logits: Tensor, participants: Participants, box_losses: Tensor | None
) -> tuple[Tensor, ...]:
    """The losses of ``ranking`` as scalars: (rank,), (rank, sort) or (rank, localisation).

    ``logits`` may have any shape, floating-point type and strides. Half-precision logits are ranked
    in float32 and the losses are float32; gradients come back in the logits' own type. NaN logits
    of positives or negatives, and infinite ones of positives, make every loss NaN. A negative at
    -inf is below everything, one at +inf above everything.
    """
    # The losses set the precision of every step themselves; autocast must not change it.
    with torch.autocast(logits.device.type, enabled=False):
        return _RankingFunction.apply(logits.reshape(-1), box_losses, participants, ranking)


class _RankingFunction(torch.autograd.Function):
    """Keeps the gradients of the positives and of the relevant negatives only; ``backward`` writes
    them into a zero tensor, each scaled by the upstream gradient of its loss."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        box_losses: Tensor | None,
        participants: Participants,
        ranking: Ranking,
    ) -> tuple[Tensor, ...]:
        outcome = _rank(ranking, logits, participants, box_losses)
        # Not the losses: a graph that held its own outputs would never be freed.
        ctx.participants, ctx.outcome = participants, outcome._replace(losses=())
        ctx.grad_like = logits.new_empty(0), logits.shape
        recomputes = isinstance(outcome.negative_grad, _RecomputedGrad)
        ctx.save_for_backward(logits if recomputes else None)
        return outcome.losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        outcome: _Outcome = ctx.outcome
        like, shape = ctx.grad_like
        grad = like.new_zeros(shape)
        outcome.negative_grad.write(grad, ctx.saved_tensors[0], upstream[0])
        # The losses share the positives, each with an upstream gradient of its own.
        positive_grad = torch.zeros_like(outcome.positive_grads[0])
        for part, scale in zip(outcome.positive_grads, upstream, strict=False):
            positive_grad += part * scale
        grad[ctx.participants.positives] = positive_grad.to(grad.dtype)
        box_grad = None if outcome.box_grad is None else outcome.box_grad * upstream[1]
        return grad, box_grad, None, None


def _rank(
    ranking: Ranking, logits: Tensor, participants: Participants, box_losses: Tensor | None
) -> _Outcome:
    positives = logits[participants.positives].to(_working_dtype(logits))
    if positives.numel() == 0:
        return _rank_nothing(ranking, logits, participants, positives)
    if ranking.algorithm == "exact":
        return _rank_exactly(ranking, logits, participants, positives, box_losses)
    lowest = exact.lowest_relevant(positives, ranking.delta)
    places, negatives = next(_relevant_negatives(logits, participants, lowest, None))
    module = definition if ranking.algorithm == "loop" else bucketed
    qualities = participants.qualities.to(positives.dtype)
    second: RankingTerm | LocalisationTerm | None = None
    if ranking.objective == "ap":
        first = module.average_precision(positives, negatives, ranking.delta, ranking.interpolated)
    elif ranking.objective == "rs":
        first, second = module.rank_sort(positives, qualities, negatives, ranking.delta)
    else:
        assert box_losses is not None
        first, second = definition.localisation_recall_precision(
            positives, box_losses.to(positives.dtype), negatives, ranking.delta
        )
    assert first.negative_grad is not None
    undefined = ~positives.isfinite().all() | negatives.isnan().any()
    return _outcome(first, second, _StoredGrad(places, first.negative_grad), undefined, positives)


def _rank_exactly(
    ranking: Ranking,
    logits: Tensor,
    participants: Participants,
    positives: Tensor,
    box_losses: Tensor | None,
) -> _Outcome:
    undefined = ~positives.isfinite().all()
    # Where the ranking is undefined, any numbers do, but places computed from NaN would not.
    bins = exact.Bins(positives.nan_to_num(0, 0, 0), ranking.delta)
    histogram = None
    chunks = _relevant_negatives(logits, participants, bins.lowest, ranking.chunk_size)
    for places, negatives in chunks:  # noqa: B007
        undefined |= negatives.isnan().any()
        located = bins.locate(negatives)
        histogram = bins.histogram(located, onto=histogram)
    assert histogram is not None
    second: RankingTerm | LocalisationTerm | None = None
    if ranking.objective == "ap":
        first = exact.average_precision(bins, histogram, ranking.interpolated)
    elif ranking.objective == "rs":
        first, second = exact.rank_sort(bins, participants.qualities, histogram)
    else:
        assert box_losses is not None
        first, second = exact.localisation_recall_precision(bins, box_losses, histogram)
    negative_grad: _StoredGrad | _RecomputedGrad
    if ranking.chunk_size is None:
        negative_grad = _StoredGrad(places, bins.read(first.negative_grad, located))
    else:
        negative_grad = _RecomputedGrad(bins, first.negative_grad, participants, ranking.chunk_size)
    return _outcome(first, second, negative_grad, undefined, positives)


def _rank_nothing(
    ranking: Ranking, logits: Tensor, participants: Participants, positives: Tensor
) -> _Outcome:
    """Without positives every loss and gradient is zero; a NaN among the logits shows even so."""
    zero = positives.new_zeros(())
    found = [
        places.numel() > 0
        for places, _ in _relevant_negatives(logits, participants, torch.inf, ranking.chunk_size)
    ]
    loss = zero + torch.nan if any(found) else zero
    nowhere = _StoredGrad(participants.positives, positives)
    count = 1 if ranking.objective == "ap" else 2
    box_grad = positives if ranking.objective == "alrp" else None
    losses = tuple(loss.clone() for _ in range(count))
    return _Outcome(losses, (positives,), box_grad, nowhere)


def _outcome(
    first: RankingTerm | exact.ExactTerm,
    second: RankingTerm | LocalisationTerm | None,
    negative_grad: _StoredGrad | _RecomputedGrad,
    undefined: Tensor,
    positives: Tensor,
) -> _Outcome:
    # Added to everything that comes out: a diverging model is to be seen, not ranked.
    poison = torch.where(undefined, torch.nan, positives.new_zeros(()))
    losses = tuple((term.loss + poison).to(poison.dtype) for term in (first, second) if term)
    grads = tuple(
        term.positive_grad + poison
        for term in (first, second)
        if term is not None and not isinstance(term, LocalisationTerm)
    )
    box_grad = second.box_grad + poison if isinstance(second, LocalisationTerm) else None
    return _Outcome(losses, grads, box_grad, negative_grad)


def _working_dtype(logits: Tensor) -> torch.dtype:
    """The type that logits are ranked in: their own, at least float32."""
    return torch.promote_types(logits.dtype, torch.float32)


def _relevant_negatives(
    logits: Tensor,
    participants: Participants,
    lowest: Tensor | float,
    chunk_size: int | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Places and logits, chunk by chunk, of the negatives that are not below ``lowest``, or NaN.

    The one step where the host waits for the device: how many negatives are relevant is the size of
    all that follows, and leaving out the others is what makes the losses cheap.
    """
    total, positives, ignored = logits.numel(), participants.positives, participants.ignored
    stretch = 1 if ignored is None else max(1, total // max(1, ignored.numel()))
    size = total if chunk_size is None else max(1, chunk_size // stretch) * stretch
    for start in range(0, max(1, total), max(1, size)):
        chunk = logits[start : start + size]
        # One slot more than the chunk has: the positives of other chunks are marked there.
        selected = torch.empty(chunk.numel() + 1, dtype=torch.bool, device=logits.device)
        torch.lt(chunk, lowest, out=selected[:-1])
        selected.logical_not_()
        outside = (positives < start) | (positives >= start + chunk.numel())
        selected[torch.where(outside, chunk.numel(), positives - start)] = False
        selected = selected[:-1]
        if ignored is not None:
            rows = ignored[start // stretch :][: chunk.numel() // stretch]
            selected.view(-1, stretch).logical_and_(rows.logical_not()[:, None])
        places = selected.nonzero().squeeze(1)
        negatives = chunk.index_select(0, places).to(_working_dtype(logits))
        yield places.add_(start) if start else places, negatives
