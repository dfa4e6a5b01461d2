"""The public ranking losses: plain functions over dense targets, and ``RankingLoss`` over both."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .alrp import LocalisationRecallPrecision
from .ap import AveragePrecision
from .autograd import Participants, Ranking, ranking_losses
from .bucketed import Buckets
from .exact import Bins
from .objective import Algorithm, Loop, Objective
from .rs import RankSort

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (AveragePrecision, LocalisationRecallPrecision, RankSort)
}
_ALGORITHMS: dict[str, type[Algorithm]] = {"loop": Loop, "bucketed": Buckets, "exact": Bins}

LOSS_NAMES: dict[str, tuple[str, str]] = {
    pattern.format(name): (name, algorithm)
    for algorithm, pattern in {"loop": "{}", "bucketed": "b{}", "exact": "{}-exact"}.items()
    for name, objective in OBJECTIVES.items()
    if algorithm in objective.algorithms
}
"""Every loss that ``RankingLoss`` can be built from, as (objective, algorithm)."""


def ap_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    delta: float = 1.0,
    interpolated: bool = False,
    algorithm: str = "exact",
    chunk_size: int | None = None,
) -> Tensor:
    """Average Precision loss: the mean over the positives of the share of negatives ranked above.

    Chen et al., "Towards Accurate One-Stage Object Detection with AP-Loss", CVPR 2019;
    bucketed: Yavuz et al., ECCV 2024 (section 4).

    Args:
        logits: any shape, floating point; one ranking runs over all of them.
        targets: same shape; above 0 is a positive, 0 a negative, -1 takes no part.
        delta: half-width of the linear step that compares two logits, in logits, >= 0.
        interpolated: use the best precision among the positives that score no higher, as the
            original AP Loss code does.
        algorithm: "exact" (lossless buckets), "bucketed" (mean prototypes, as published) or "loop"
            (one positive at a time).
        chunk_size: how many logits "exact" looks at at once, to bound its working memory; the
            result is the same, the negatives are sorted into bins twice. None: all. (The kernels
            that a GPU takes need no such bound.)

    Returns:
        Scalar in [0, 1]; float32, or float64 for float64 logits. Zero without positives, NaN if a
        logit is NaN or a positive's is infinite.

    Raises:
        ValueError: an argument's shape, type, value or name is not as above.
    """
    ranking = _ranking("ap", algorithm, delta, interpolated, chunk_size)
    return _dense(ranking, logits, targets, None)[0]


def rank_sort_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    delta: float = 0.5,
    algorithm: str = "exact",
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Rank & Sort loss: positives above negatives, and positives in the order of their qualities.

    Oksuz et al., "Rank & Sort Loss for Object Detection and Instance Segmentation", ICCV 2021
    (eq. 7 and 8); bucketed: Yavuz et al., ECCV 2024 (section 4).

    Args:
        logits, delta, algorithm, chunk_size: see :func:`ap_loss`.
        targets: shape of `logits`; above 0 is a positive and its quality (IoU, at most 1), 0 a
            negative, -1 takes no part.

    Returns:
        Two scalars, the ranking and the sorting error; all else, errors too, as :func:`ap_loss`.
    """
    ranking = _ranking("rs", algorithm, delta, False, chunk_size)
    ranking_error, sorting_error = _dense(ranking, logits, targets, None)
    return ranking_error, sorting_error


def alrp_loss(
    logits: Tensor,
    targets: Tensor,
    box_losses: Tensor,
    *,
    delta: float = 1.0,
    algorithm: str = "exact",
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Average Localisation-Recall-Precision loss: one ranking for both tasks of a detector.

    Oksuz et al., "A Ranking-based, Balanced Loss Function Unifying Classification and Localisation
    in Object Detection", NeurIPS 2020.

    Args:
        logits, targets, delta, chunk_size: see :func:`ap_loss`.
        box_losses: [P], the box regression loss of each positive, at least 0, in the order of the
            positives in the flattened targets; 1 - GIoU, in 0..2, in the public code.
        algorithm: "exact" or "loop", see :func:`ap_loss`.

    Returns:
        Two scalars, the classification part (gradient to the logits) and the localisation part
        (gradient to the box losses); all else, errors too, as :func:`ap_loss`.
    """
    ranking = _ranking("alrp", algorithm, delta, False, chunk_size)
    classification, localisation = _dense(ranking, logits, targets, box_losses)
    return classification, localisation


class RankingLoss(nn.Module):
    """A ranking loss chosen by name; see ``LOSS_NAMES`` and the function of its objective.

    Args:
        name: a key of ``LOSS_NAMES``.
        delta: half-width of the linear step that compares two logits; None: 1.0 for AP and aLRP,
            0.5 for RS, as in their papers.
        interpolated: for AP only; None: yes for ``ap`` and ``ap-exact``, as the original AP Loss
            does, no for ``bap``, as published.
        chunk_size: for the exact algorithm only: how many logits it looks at at once, to bound its
            working memory; None: all.

    Raises:
        ValueError: unknown name, delta that is negative or not finite, chunk_size below 1, or an
            option that the loss does not have.
    """

    def __init__(
        self,
        name: str,
        delta: float | None = None,
        interpolated: bool | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if name not in LOSS_NAMES:
            raise ValueError(f"unknown loss {name!r}; choose one of {', '.join(LOSS_NAMES)}")
        self.name = name
        self.objective, self.algorithm = LOSS_NAMES[name]
        if delta is None:
            delta = OBJECTIVES[self.objective].default_delta
        if interpolated is None:
            interpolated = OBJECTIVES[self.objective].can_interpolate
            interpolated = interpolated and self.algorithm != "bucketed"
        self._ranking = _ranking(self.objective, self.algorithm, delta, interpolated, chunk_size)
        self.delta, self.interpolated = self._ranking.objective.delta, interpolated

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        box_losses: Tensor | None = None,
        group: "dist.ProcessGroup | None" = None,
    ) -> dict[str, Tensor]:
        """The losses for dense ``targets``; arguments as in ``ap_loss`` and its siblings.

        Args:
            group: for the exact algorithm only: processes whose logits are ranked together. All of
                them must make the call, with logits of one type; those without positives, too. What
                they exchange grows with the number of positives, not with that of the logits.

        Returns:
            Scalars ``loss_rank`` and, for RS, ``loss_sort``, for aLRP, ``loss_loc``. In a group
            they are the same on all processes, and each gets the gradient of its own logits: that
            of one process with all logits. Who averages gradients over W processes, as
            DistributedDataParallel does, has to scale them by W.

        Raises:
            ValueError: an argument is not as above.
        """
        return self._named(_dense(self._ranking, logits, targets, box_losses, group))

    def forward_indexed(
        self,
        logits: Tensor,
        positives: Tensor,
        qualities: Tensor,
        ignored_rows: Tensor | None = None,
        box_losses: Tensor | None = None,
        group: "dist.ProcessGroup | None" = None,
    ) -> dict[str, Tensor]:
        """The losses for few positives among many logits, without targets of the logits' size.

        Values are not checked here, so that nothing waits for the device.

        Args:
            logits: [A, C] or any other shape, floating point, any strides.
            positives: LongTensor [P], their flat indices into ``logits`` in C order, each once, in
                any order.
            qualities: [P] in (0, 1]; used by RS only.
            ignored_rows: BoolTensor [A], or over any leading dimensions of ``logits``: what takes
                no part. A positive always takes part.
            box_losses: [P] in the order of ``positives``; required by aLRP, unused otherwise.
            group: see :meth:`forward`.

        Returns:
            See :meth:`forward`.

        Raises:
            ValueError: a shape or type is not as above.
        """
        given = logits, positives, qualities, ignored_rows, box_losses
        return self._named(_indexed(self._ranking, *given, group))

    def extra_repr(self) -> str:
        """The options, as ``repr`` shows them."""
        options = f"{self.name!r}, delta={self.delta:g}"
        can_interpolate = OBJECTIVES[self.objective].can_interpolate
        return options + (f", interpolated={self.interpolated}" if can_interpolate else "")

    def _named(self, losses: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip(self._ranking.objective.outputs, losses, strict=True))


def _ranking(
    name: str, algorithm: str, delta: float, interpolated: bool, chunk_size: int | None
) -> Ranking:
    objective = OBJECTIVES[name]
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"unknown algorithm {algorithm!r}; choose one of {', '.join(_ALGORITHMS)}")
    if algorithm not in objective.algorithms:
        choice = " or ".join(map(repr, sorted(objective.algorithms)))
        raise ValueError(
            f"the {objective.label} loss has no {algorithm} form; choose algorithm {choice}"
        )
    if not isinstance(delta, int | float) or not math.isfinite(delta) or delta < 0:
        raise ValueError(f"delta must be a finite number of at least 0, not {delta!r}")
    if interpolated and not objective.can_interpolate:
        raise ValueError(f"only the AP loss can be interpolated, not {name!r}")
    if chunk_size is not None:
        if algorithm != "exact":
            raise ValueError(f"only algorithm 'exact' has a chunk_size, not {algorithm!r}")
        if not isinstance(chunk_size, int) or chunk_size < 1:
            raise ValueError(f"chunk_size must be a whole number of at least 1, not {chunk_size!r}")
    return Ranking(objective(float(delta), bool(interpolated)), _ALGORITHMS[algorithm], chunk_size)


def _dense(
    ranking: Ranking,
    logits: Tensor,
    targets: Tensor,
    box_losses: Tensor | None,
    group: "dist.ProcessGroup | None" = None,
) -> tuple[Tensor, ...]:
    if targets.shape != logits.shape:
        raise ValueError(
            f"targets must have the shape of logits, {list(logits.shape)}, "
            f"not {list(targets.shape)}"
        )
    if targets.is_complex():
        raise ValueError(f"targets must be real numbers, not {targets.dtype}")
    if targets.device.type == "cpu":
        # On other devices looking at the values would make the host wait for them.
        allowed = (targets == -1) | ((targets >= 0) & (targets <= 1))
        if not allowed.all():
            found = targets[~allowed][0].item()
            raise ValueError(f"targets must be -1 or in [0, 1]; one of them is {found}")
    flat = targets.reshape(-1)
    positives = (flat > 0).nonzero().squeeze(1)
    qualities = flat[positives].to(torch.promote_types(flat.dtype, torch.float32))
    ignored = targets < 0
    return _indexed(ranking, logits, positives, qualities, ignored, box_losses, group)


def _indexed(
    ranking: Ranking,
    logits: Tensor,
    positives: Tensor,
    qualities: Tensor,
    ignored: Tensor | None,
    box_losses: Tensor | None,
    group: "dist.ProcessGroup | None",
) -> tuple[Tensor, ...]:
    if group is not None and not issubclass(ranking.algorithm, Bins):
        raise ValueError("only algorithm 'exact' ranks over a group of processes")
    if not logits.is_floating_point():
        raise ValueError(
            f"logits must be float16, bfloat16, float32 or float64, not {logits.dtype}"
        )
    if positives.dtype != torch.int64 or positives.dim() != 1:
        raise ValueError(
            "positives must be flat indices, an int64 tensor [P], not "
            f"{positives.dtype} {list(positives.shape)}"
        )
    _check_per_positive("qualities", qualities, positives)
    if ignored is not None:
        _check_ignored(ignored, logits)
    if not ranking.objective.needs_box_losses:
        box_losses = None
    elif box_losses is None:
        raise ValueError(
            f"the {ranking.objective.label} loss needs box_losses, one for each positive"
        )
    else:
        _check_per_positive("box_losses", box_losses, positives)
    ignored = None if ignored is None else ignored.reshape(-1)
    participants = Participants(positives, qualities.detach(), ignored)
    return ranking_losses(ranking, logits, participants, box_losses, group)


def _check_per_positive(name: str, values: Tensor, positives: Tensor) -> None:
    if values.shape != positives.shape:
        raise ValueError(
            f"{name} must hold one value for each of the {positives.numel()} positives, "
            f"not have shape {list(values.shape)}"
        )
    if not values.is_floating_point():
        raise ValueError(f"{name} must be floating point, not {values.dtype}")


def _check_ignored(ignored: Tensor, logits: Tensor) -> None:
    if ignored.dtype != torch.bool or ignored.shape != logits.shape[: ignored.dim()]:
        raise ValueError(
            f"ignored_rows must be a bool tensor over the rows of logits {list(logits.shape)}, "
            f"not {ignored.dtype} {list(ignored.shape)}"
        )
