"""What a ranking loss is made of: an objective, and an algorithm that computes it.

To add an objective, write one file with a subclass of :class:`Objective` (``ap.py`` is the
shortest) and name it in ``OBJECTIVES`` of ``api.py``; ``RankingLoss`` then has it in every
algorithm. To add an algorithm by sums, subclass :class:`Tables` and name it in ``_ALGORITHMS``
there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from torch import Tensor


class LogitsGrad(ABC):
    """The gradient of a negative's logit as a function of it."""

    @abstractmethod
    def write(self, logits: Tensor, ignored: Tensor | None, upstream: Tensor) -> Tensor:
        """[R]: the gradients of all logits as negatives, times the scalar ``upstream``; 0 where
        ``ignored``, as of :meth:`LogitsTables.read`."""


NegativeGrad = Tensor | Callable[[Tensor], Tensor] | LogitsGrad
"""Gradients of the negatives' logits [N], or what gives them for any of the logits."""


def stretch_of(logits: Tensor, ignored: Tensor | None) -> int:
    """How many logits each of ``ignored``, bool of equal stretches of ``logits``, stands for."""
    return 1 if ignored is None else max(1, logits.numel() // max(1, ignored.numel()))


class Terms(NamedTuple):
    """The losses of an objective, and the gradients that they assign for an upstream gradient of 1.

    Ranking losses are optimised by identity update: their gradients are assigned, not derived, so
    they are computed together with the values.
    """

    losses: tuple[Tensor, ...]
    """Scalars, means over the positives, one for each of ``Objective.outputs``."""
    positive_grads: tuple[Tensor, ...]
    """[P] each: what each loss assigns to the positives' logits; a loss of boxes has none."""
    box_grad: Tensor | None = None
    """[P]: what the second loss assigns to the box losses, where the objective takes them."""


class Objective(ABC):
    """What is to be minimised: errors of the positives' ranks, and who is to blame for them.

    The first loss alone moves the negatives. In both methods, ``values`` [P] holds what the
    objective needs to know of each positive: its box loss if ``needs_box_losses``, otherwise its
    quality.

    Args:
        delta: half-width of the linear step that compares two logits, >= 0.
        interpolated: an option of AP.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    """The name, as people write it."""
    outputs: ClassVar[tuple[str, ...]]
    """Names of the losses."""
    default_delta: ClassVar[float]
    algorithms: ClassVar[tuple[str, ...]] = ("loop", "bucketed", "exact")
    """Those that the loss is known or published in."""
    needs_box_losses: ClassVar[bool] = False
    can_interpolate: ClassVar[bool] = False

    def __init__(self, delta: float, interpolated: bool = False) -> None:
        self.delta, self.interpolated = delta, interpolated

    @abstractmethod
    def loop(self, positives: Tensor, negatives: Tensor, values: Tensor) -> tuple[Terms, Tensor]:
        """The definition, one positive at a time, from logits [P] (P >= 1) and [N].

        Slow and obvious on purpose: the other algorithms are tested against it, and timed.

        Returns:
            The terms, and the gradient of each negative's logit [N].
        """

    @abstractmethod
    def tabulate(self, tables: "Tables", values: Tensor) -> tuple[Terms, Tensor]:
        """The same from the sums that an algorithm gives.

        Returns:
            The terms, and the ``share`` [P] of which :meth:`Tables.spread` makes the negatives'
            gradients.
        """


class Algorithm(ABC):
    """A way to compute an objective, for logits of positives [P], P >= 1, finite, float32 or
    float64, and for the half-width delta >= 0 of the relation."""

    def __init__(self, positives: Tensor, delta: float) -> None:
        self.positives, self.delta = positives, delta

    @abstractmethod
    def add(self, negatives: Tensor) -> None:
        """Take in the negatives [N], of the positives' type, which may be overwritten: all at once,
        except for algorithms that can do with chunks."""

    @abstractmethod
    def rank(self, objective: Objective, values: Tensor) -> tuple[Terms, NegativeGrad]:
        """The objective's terms, and what the first loss assigns to the negatives."""


class Loop(Algorithm):
    """One positive at a time, as the papers define the objectives: O(P (P + N))."""

    def add(self, negatives: Tensor) -> None:
        self.negatives = negatives

    def rank(self, objective: Objective, values: Tensor) -> tuple[Terms, NegativeGrad]:
        return objective.loop(self.positives, self.negatives, values.to(self.positives.dtype))


class Tables(Algorithm):
    """An algorithm by way of sums of relations, s_i being the logits of the positives."""

    def rank(self, objective: Objective, values: Tensor) -> tuple[Terms, NegativeGrad]:
        terms, share = objective.tabulate(self, values.to(self.positives.dtype))
        return terms, self.spread(share)

    @abstractmethod
    def positives_above(self, weights: Tensor | None = None) -> Tensor:
        """[P]: sum over the positives k, i included, of H(s_k - s_i) w_k; of 1 each for None."""

    @abstractmethod
    def negatives_above(self) -> Tensor:
        """[P]: NFP_i, the sum over the negatives j of H(s_j - s_i)."""

    @abstractmethod
    def positives_above_by_quality(
        self, qualities: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Two [M, P], for M rows of weights [M, P]: the sums of H(s_k - s_i) w_k over the positives
        k of a lower quality than i, and over all others."""

    @abstractmethod
    def spread_to_worse(self, qualities: Tensor, share: Tensor) -> Tensor:
        """[P]: for every k, the sum of H(s_k - s_i) share_i over the positives i of a higher
        quality than k."""

    @abstractmethod
    def spread(self, share: Tensor) -> NegativeGrad:
        """For every negative j, the mean over the positives i of H(s_j - s_i) share_i."""


class LogitsTables(Tables):
    """An algorithm that finds the negatives among the logits itself.

    Attributes:
        negatives: sums over the negatives, which processes with the same positives may add up.
    """

    negatives: tuple[Tensor, ...] | None = None

    def add(self, negatives: Tensor) -> None:
        raise NotImplementedError("logits are read, negatives are not added")

    @abstractmethod
    def read(self, logits: Tensor, positives: Tensor, ignored: Tensor | None) -> Tensor:
        """Take in the logits [R] but for the positives, int64 places [P], and what is ``ignored``:
        bool, of how many equal stretches of logits, or None.

        Returns:
            Scalar: NaN if a logit that takes part is NaN or a positive's infinite, else 0.
        """
