"""The relation H between two logits, from which every rank and every error is summed."""

import torch
from torch import Tensor


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


def table_dtype(logits: Tensor) -> torch.dtype:
    """float64, in which sums over very many logits stay precise; MPS has nothing above float32."""
    return torch.float32 if logits.device.type == "mps" else torch.float64
