"""Where the losses meet autograd: one function that assigns the gradients of any ranking loss."""

import warnings
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .exact import Bins
from .objective import Algorithm, LogitsGrad, LogitsTables, Objective, Terms, stretch_of
from .processes import gather_rows, sum_in_place
from .relations import table_dtype

# Above it a GPU, too, takes prefix sums and a tree. Milliseconds of an H200 for 20,000 positives
# among 1e6 logits, kernels and PyTorch: RS 12 and 69, AP 9 and 7.
_MOST_PAIRED = 1 << 15


class Ranking(NamedTuple):
    """Which loss to compute, and how."""

    objective: Objective
    algorithm: type[Algorithm]
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


def ranking_losses(
    ranking: Ranking,
    logits: Tensor,
    participants: Participants,
    box_losses: Tensor | None,
    group: "dist.ProcessGroup | None" = None,
) -> tuple[Tensor, ...]:
    """The losses of ``ranking`` as scalars, in the order of its objective's outputs.

    ``logits`` may have any shape, floating-point type and strides. Half-precision logits are ranked
    in float32 and the losses are float32; gradients come back in the logits' own type. NaN logits
    of positives or negatives, and infinite ones of positives, make every loss NaN. A negative at
    -inf is below everything, one at +inf above everything.

    With a ``group``, for the exact algorithm, one ranking runs over the logits of all its
    processes. Every process gets the same losses, and their gradients to its own logits.

    The logits must not be changed in place before ``backward``: a GPU reads them there once more.
    """
    # The losses set the precision of every step themselves; autocast must not change it.
    with torch.autocast(logits.device.type, enabled=False), torch.cuda.device_of(logits):
        return _RankingFunction.apply(logits.reshape(-1), box_losses, participants, ranking, group)


class _RankingFunction(torch.autograd.Function):
    """Keeps the gradients of the positives and of the relevant negatives only, or, of negatives,
    what they follow from and the logits; ``backward`` writes those of all logits, each scaled by
    the upstream gradient of its loss."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        box_losses: Tensor | None,
        participants: Participants,
        ranking: Ranking,
        group: "dist.ProcessGroup | None",
    ) -> tuple[Tensor, ...]:
        negatives = _Negatives(logits, participants, ranking.chunk_size)
        positives = logits[participants.positives].to(_working_dtype(logits))
        values = participants.qualities if box_losses is None else box_losses
        own = slice(None)
        if group is not None:
            positives, values, own = _gather_positives(positives, values, group)
        if positives.numel() == 0:
            terms, negative_grad = _rank_nothing(ranking.objective, positives, negatives, group)
        else:
            ranking = ranking._replace(
                algorithm=_form_of(ranking.algorithm, logits, positives.numel())
            )
            terms, negative_grad = _rank(ranking, positives, values, negatives, group)
        ctx.positive_grads = [grad[own] for grad in terms.positive_grads]
        ctx.box_grad = None if terms.box_grad is None else terms.box_grad[own]
        ctx.negative_grad = negative_grad
        ctx.participants, ctx.chunk_size = participants, ranking.chunk_size
        ctx.lowest, ctx.places = negatives.lowest, negatives.places
        ctx.grad_like = logits.new_empty(0), logits.shape
        ctx.save_for_backward(None if isinstance(negative_grad, Tensor) else logits)
        return terms.losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        like, shape = ctx.grad_like
        if isinstance(ctx.negative_grad, LogitsGrad):
            grad = ctx.negative_grad.write(logits, ctx.participants.ignored, upstream[0])
        elif isinstance(ctx.negative_grad, Tensor):
            grad = like.new_zeros(shape)
            grad.scatter_(0, ctx.places, (ctx.negative_grad * upstream[0]).to(grad.dtype))
        else:
            grad = like.new_zeros(shape)
            negatives = _Negatives(logits, ctx.participants, ctx.chunk_size)
            for chunk in negatives.above(ctx.lowest):
                values = ctx.negative_grad(chunk) * upstream[0]
                grad.scatter_(0, negatives.places, values.to(grad.dtype))
        # The losses share the positives, each with an upstream gradient of its own.
        positive_grad = torch.zeros_like(ctx.positive_grads[0])
        for part, scale in zip(ctx.positive_grads, upstream, strict=False):
            positive_grad += part * scale
        grad[ctx.participants.positives] = positive_grad.to(grad.dtype)
        box_grad = None if ctx.box_grad is None else ctx.box_grad * upstream[1]
        return grad, box_grad, None, None, None


def _gather_positives(
    positives: Tensor, values: Tensor, group: "dist.ProcessGroup"
) -> tuple[Tensor, Tensor, slice]:
    """Logits and values of all processes' positives, and which of them are this process'."""
    common = torch.promote_types(positives.dtype, values.dtype)
    rows, own = gather_rows(torch.stack([positives.to(common), values.to(common)], dim=1), group)
    return rows[:, 0].to(positives.dtype), rows[:, 1].to(values.dtype), own


def _rank(
    ranking: Ranking,
    positives: Tensor,
    values: Tensor,
    negatives: "_Negatives",
    group: "dist.ProcessGroup | None",
) -> tuple[Terms, Any]:
    algorithm, poison = _take_in(ranking, positives, negatives)
    if group is not None:
        assert isinstance(algorithm, Bins | LogitsTables)
        assert algorithm.negatives is not None
        sum_in_place([*algorithm.negatives, poison], group)
    terms, negative_grad = algorithm.rank(ranking.objective, values)
    # Added to everything that comes out: a diverging model is to be seen, not ranked.
    return Terms(
        tuple((loss + poison).to(positives.dtype) for loss in terms.losses),
        tuple(grad + poison for grad in terms.positive_grads),
        None if terms.box_grad is None else terms.box_grad + poison,
    ), negative_grad


def _take_in(
    ranking: Ranking, positives: Tensor, negatives: "_Negatives"
) -> tuple[Algorithm, Tensor]:
    """The algorithm with all negatives, and a scalar that is NaN where the ranking is undefined."""
    kind, delta = ranking.algorithm, ranking.objective.delta
    # Where the ranking is undefined, any numbers do, but places computed from NaN would not.
    finite = positives.nan_to_num(0, 0, 0)
    if issubclass(kind, LogitsTables):
        tables = kind(finite, delta)
        return tables, tables.read(negatives.logits, negatives.positives, negatives.ignored)
    undefined = ~positives.isfinite().all()
    algorithm = kind(finite, delta)
    for chunk in negatives.above(_lowest_relevant(finite, delta)):
        undefined |= chunk.isnan().any()
        algorithm.add(chunk)
    zero = positives.new_zeros((), dtype=table_dtype(positives))
    return algorithm, torch.where(undefined, torch.nan, zero)


def _form_of(algorithm: type[Algorithm], logits: Tensor, num_positives: int) -> type[Algorithm]:
    """The algorithm, or that of its forms which is made for such logits, with the same results."""
    few = num_positives <= _MOST_PAIRED
    if algorithm is Bins and few and logits.dtype != torch.float64 and _can_fuse(logits.device):
        from .fused import FusedBins

        return FusedBins
    return algorithm


@cache
def _can_fuse(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device; warns where they should and do not."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    obstacle = obstacle_to_kernels(device)
    if obstacle is not None:
        warnings.warn(
            f"Triton's kernels do not run on {device} ({obstacle}), so the exact losses take "
            "PyTorch's operations, which gives the same, but not as fast.",
            RuntimeWarning,
            stacklevel=2,
        )
    return obstacle is None


def obstacle_to_kernels(device: torch.device) -> str | None:
    """What keeps Triton's kernels from running on a GPU, in a few words; None: nothing."""
    if find_spec("triton") is None:
        return "triton is not installed"
    try:
        from .fused import try_out

        try_out(device)
    except Exception as error:  # an old GPU, no C compiler for Triton's launcher, ...
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _rank_nothing(
    objective: Objective,
    positives: Tensor,
    negatives: "_Negatives",
    group: "dist.ProcessGroup | None",
) -> tuple[Terms, Tensor]:
    """Without positives every loss and gradient is zero; a NaN among the logits shows even so."""
    found = [bool(chunk.isnan().any()) for chunk in negatives.above(torch.inf)]
    loss = positives.new_full((), torch.nan if any(found) else 0.0)
    if group is not None:
        sum_in_place([loss], group)
    losses = tuple(loss.clone() for _ in objective.outputs)
    negatives.places = negatives.places[:0]
    return Terms(losses, (positives,), positives if objective.needs_box_losses else None), positives


def _working_dtype(logits: Tensor) -> torch.dtype:
    """The type that logits are ranked in: their own, at least float32."""
    return torch.promote_types(logits.dtype, torch.float32)


def _lowest_relevant(positives: Tensor, delta: float) -> Tensor:
    """Scalar below which no negative has an effect: min_i s_i - delta, and a little less, so that
    rounding to the type of the logits loses none."""
    lowest = positives.min().to(table_dtype(positives)) - delta
    margin = lowest.abs() * (2 * torch.finfo(positives.dtype).eps)
    return lowest - margin


class _Negatives:
    """The flattened logits but for positives and what is ignored, found chunk by chunk.

    Attributes:
        lowest: the limit last asked for.
        places: LongTensor: where the logits of the last chunk stand.
    """

    def __init__(self, logits: Tensor, participants: Participants, chunk_size: int | None) -> None:
        self.logits, self.chunk_size = logits, chunk_size
        self.positives, self.ignored = participants.positives, participants.ignored
        self.lowest: Tensor | float = torch.inf
        self.places = self.positives[:0]

    def above(self, lowest: Tensor | float) -> Iterator[Tensor]:
        """Logits of the negatives that are not below ``lowest``, or NaN, chunk by chunk.

        The one step where the host waits for the device: how many negatives are relevant is the
        size of all that follows, and leaving out the others is what makes the losses cheap.
        """
        self.lowest = lowest
        total = self.logits.numel()
        stretch = stretch_of(self.logits, self.ignored)
        size = total if self.chunk_size is None else max(1, self.chunk_size // stretch) * stretch
        for start in range(0, max(1, total), max(1, size)):
            chunk = self.logits[start : start + size]
            # One slot more than the chunk has: the positives of other chunks are marked there.
            selected = torch.empty(chunk.numel() + 1, dtype=torch.bool, device=chunk.device)
            torch.lt(chunk, lowest, out=selected[:-1])
            selected.logical_not_()
            outside = (self.positives < start) | (self.positives >= start + chunk.numel())
            selected.index_fill_(0, torch.where(outside, chunk.numel(), self.positives - start), 0)
            selected = selected[:-1]
            if self.ignored is not None:
                rows = self.ignored[start // stretch :][: chunk.numel() // stretch]
                selected.view(-1, stretch).logical_and_(rows.logical_not()[:, None])
            places = selected.nonzero().squeeze(1)
            negatives = chunk.index_select(0, places).to(_working_dtype(chunk))
            self.places = places.add_(start) if start else places
            yield negatives
