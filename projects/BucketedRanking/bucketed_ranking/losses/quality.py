"""Losses that train a score towards the quality of its box, which ranking losses are compared with.

Each is of one class logit at a time, no ranking, and takes what a ranking loss takes.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from .processes import sum_in_place

# The losses of a negative by its logit, and of a positive by its logit and quality, [P] each.
_Terms = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]


def _qfl_negative(logits: Tensor) -> Tensor:
    return logits.sigmoid().square() * F.softplus(logits)


def _qfl_positive(logits: Tensor, qualities: Tensor) -> Tensor:
    error = qualities - logits.sigmoid()
    return error.square() * _cross_entropy(logits, qualities)


def _vfl_negative(logits: Tensor) -> Tensor:
    return 0.75 * logits.sigmoid().square() * F.softplus(logits)


def _vfl_positive(logits: Tensor, qualities: Tensor) -> Tensor:
    return qualities * _cross_entropy(logits, qualities)


def _mal_negative(logits: Tensor) -> Tensor:
    return logits.detach().sigmoid().pow(1.5) * F.softplus(logits)


def _mal_positive(logits: Tensor, qualities: Tensor) -> Tensor:
    return _cross_entropy(logits, qualities.pow(1.5))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


QUALITY_LOSSES: dict[str, _Terms] = {
    "qfl": (_qfl_negative, _qfl_positive),
    "vfl": (_vfl_negative, _vfl_positive),
    "mal": (_mal_negative, _mal_positive),
}
"""Quality focal loss (Li et al., NeurIPS 2020, beta 2), varifocal loss (Zhang et al., CVPR 2021,
alpha 0.75, gamma 2), matchability-aware loss (DEIM, Huang et al., CVPR 2025, gamma 1.5; the
weight of its negatives has no gradient, as in its code)."""


class QualityLoss(nn.Module):
    """A loss of ``QUALITY_LOSSES`` by its name, in the form of :class:`RankingLoss`.

    Raises:
        ValueError: unknown name.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in QUALITY_LOSSES:
            raise ValueError(f"unknown loss {name!r}; choose one of {', '.join(QUALITY_LOSSES)}")
        self.name = self.objective = name
        self._negative, self._positive = QUALITY_LOSSES[name]

    def forward_indexed(
        self,
        logits: Tensor,
        positives: Tensor,
        qualities: Tensor,
        ignored_rows: Tensor | None = None,
        box_losses: Tensor | None = None,
        group: "dist.ProcessGroup | None" = None,
    ) -> dict[str, Tensor]:
        """See :meth:`RankingLoss.forward_indexed`; ``loss_cls`` is the sum over all logits by the
        number of positives, with a group both of all its processes."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        negatives = self._negative(logits)
        if ignored_rows is not None:
            rest = (1,) * (logits.dim() - ignored_rows.dim())
            negatives = negatives.masked_fill(ignored_rows.view(*ignored_rows.shape, *rest), 0)
        found = logits.reshape(-1)[positives]
        terms = self._positive(found, qualities.detach().to(found.dtype))
        loss = negatives.sum() + (terms - negatives.reshape(-1)[positives]).sum()
        count = loss.new_tensor(len(positives))
        if group is not None:
            total = loss.detach().clone()
            sum_in_place([total, count], group)
            loss = total + loss - loss.detach()
        return {"loss_cls": loss / count.clamp(min=1)}

    def extra_repr(self) -> str:
        """The name, as ``repr`` shows it."""
        return repr(self.name)
