"""Where the losses meet autograd: one function that assigns the gradients of any ranking loss."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import bucketed, definition
from .relations import LocalisationTerm, RankingTerm


class Ranking(NamedTuple):
    """Which loss to compute, and how."""

    objective: str
    algorithm: str
    delta: float
    interpolated: bool


class Positives(NamedTuple):
    """The positives of a ranking, in any order."""

    indices: Tensor
    """LongTensor [P]: their places in the flattened logits, no place twice."""
    qualities: Tensor
    """[P] in (0, 1]."""


def ranking_losses(
    ranking: Ranking,
    logits: Tensor,
    positives: Positives,
    ignored: Tensor | None,
    box_losses: Tensor | None,
) -> tuple[Tensor, ...]:
    """The losses of ``ranking`` as scalars: (rank,), (rank, sort) or (rank, localisation).

    ``logits`` may have any shape, floating-point type and strides; ``ignored`` is a bool tensor
    over its leading dimensions. Half-precision logits are ranked in float32 and the losses are
    float32; the gradients come back in the logits' own type. NaN logits of positives or negatives,
    and infinite ones of positives, make every loss NaN. A negative at -inf is below everything, one
    at +inf above everything.
    """
    # The losses set the precision of every step themselves; autocast must not change it.
    with torch.autocast(logits.device.type, enabled=False):
        outputs = _RankingFunction.apply(
            logits.reshape(-1),
            box_losses,
            positives,
            None if ignored is None else ignored.reshape(-1),
            ranking,
        )
    return outputs


class _RankingFunction(torch.autograd.Function):
    """Keeps the gradients of the positives and of the relevant negatives only; ``backward`` writes
    them into a zero tensor, each scaled by the upstream gradient of its loss."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        box_losses: Tensor | None,
        positives: Positives,
        ignored: Tensor | None,
        ranking: Ranking,
    ) -> tuple[Tensor, ...]:
        selected = logits[positives.indices].to(working_dtype(logits))
        ctx.dtype, ctx.shape, ctx.has_boxes = logits.dtype, logits.shape, box_losses is not None
        if selected.numel() == 0:
            ctx.save_for_backward(*[None] * 5)
            loss = _poison(selected, _relevant_negatives(logits, positives, ignored, torch.inf)[1])
            return (loss,) if ranking.objective == "ap" else (loss, loss.clone())
        lowest = selected.min() - ranking.delta
        indices, negatives = _relevant_negatives(logits, positives, ignored, lowest)
        first, second = _terms(ranking, selected, positives.qualities, box_losses, negatives)
        poison = _poison(selected, negatives)
        second_grad, box_grad = None, None
        if isinstance(second, RankingTerm):
            second_grad = second.positive_grad + poison
        elif isinstance(second, LocalisationTerm):
            box_grad = second.box_grad + poison
        ctx.save_for_backward(
            positives.indices,
            first.positive_grad + poison,
            second_grad,
            box_grad,
            indices,
        )
        ctx.negative_grad = first.negative_grad
        losses = (first.loss,) if second is None else (first.loss, second.loss)
        return tuple(loss + poison for loss in losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        places, first_grad, second_grad, box_grad, indices = ctx.saved_tensors
        grad = upstream[0].new_zeros(ctx.shape, dtype=ctx.dtype)
        if places is None:
            empty = upstream[0].new_zeros(0) if ctx.has_boxes else None
            return grad, empty, None, None, None
        if ctx.negative_grad is not None:
            grad[indices] = (ctx.negative_grad * upstream[0]).to(ctx.dtype)
        positive_grad = first_grad * upstream[0]
        if second_grad is not None:
            positive_grad = positive_grad + second_grad * upstream[1]
        grad[places] = positive_grad.to(ctx.dtype)
        boxes = None if box_grad is None else box_grad * upstream[1]
        return grad, boxes, None, None, None


def working_dtype(logits: Tensor) -> torch.dtype:
    """The type that logits are ranked in: their own, at least float32."""
    return torch.promote_types(logits.dtype, torch.float32)


def _relevant_negatives(
    logits: Tensor, positives: Positives, ignored: Tensor | None, lowest: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Places and logits of the negatives that score above ``lowest``, or are NaN.

    The only step that waits for the device: how many negatives are relevant decides the size of
    everything that follows, and selecting them early is what makes the rest cheap.
    """
    selected = (logits < lowest).logical_not_()
    selected[positives.indices] = False
    if ignored is not None:
        selected.view(ignored.numel(), -1).logical_and_(ignored.logical_not()[:, None])
    indices = selected.nonzero().squeeze(1)
    return indices, logits[indices].to(working_dtype(logits))


def _poison(positives: Tensor, negatives: Tensor) -> Tensor:
    """Scalar that is NaN where the ranking is undefined and 0 otherwise; added to what comes out,
    so that a diverging model is seen and not ranked."""
    undefined = ~positives.isfinite().all() | negatives.isnan().any()
    zero = positives.new_zeros(())
    return torch.where(undefined, torch.nan, zero)


def _terms(
    ranking: Ranking,
    positives: Tensor,
    qualities: Tensor,
    box_losses: Tensor | None,
    negatives: Tensor,
) -> tuple[RankingTerm, RankingTerm | LocalisationTerm | None]:
    module = {"loop": definition, "bucketed": bucketed}[ranking.algorithm]
    if ranking.objective == "ap":
        term = module.average_precision(positives, negatives, ranking.delta, ranking.interpolated)
        return term, None
    if ranking.objective == "rs":
        return module.rank_sort(positives, qualities.to(positives.dtype), negatives, ranking.delta)
    boxes = box_losses.to(positives.dtype)
    return module.localisation_recall_precision(positives, boxes, negatives, ranking.delta)
