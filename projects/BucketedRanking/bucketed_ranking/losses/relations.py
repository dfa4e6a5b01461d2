"""What the algorithms share: the relation H between two logits, and the shape of a result."""

from typing import NamedTuple

import torch
from torch import Tensor


class RankingTerm(NamedTuple):
    """One loss and the gradient that it assigns to each logit for an upstream gradient of one.

    Ranking losses are optimised by identity update: their gradients are assigned, not derived, so
    an algorithm returns them together with the value.
    """

    loss: Tensor
    """Scalar: the mean error over the positives."""
    positive_grad: Tensor
    """[P]: gradient of each positive's logit."""
    negative_grad: Tensor | None
    """[N]: gradient of each negative's logit; None where the loss gives negatives none."""


class LocalisationTerm(NamedTuple):
    """aLRP's localisation loss and its gradient with respect to the box losses."""

    loss: Tensor
    """Scalar."""
    box_grad: Tensor
    """[P]: gradient of each positive's box loss."""


def relation(difference: Tensor, delta: float) -> Tensor:
    """H_delta of logit differences: 0 well below, 1 well above, linear over a width of 2 delta.

    At delta 0 it is a step, with equal logits counted as above (H_0(0) = 1).
    """
    if delta == 0:
        return (difference >= 0).to(difference.dtype)
    # In this order nothing cancels: small relations keep their relative precision.
    return ((difference + delta) / (2 * delta)).clamp(0, 1)


def own_relation(delta: float) -> float:
    """H_delta(0): what a logit counts for in its own sum of relations."""
    return 1.0 if delta == 0 else 0.5


def interpolate(positives: Tensor, error: Tensor) -> Tensor:
    """[P]: for each positive, the least ranking error among the positives that score no higher.

    That is 1 - the running maximum of the precision of the original AP Loss, without its rounding.
    """
    order = positives.argsort()
    return torch.empty_like(error).scatter_(0, order, error[order].cummin(0).values)
