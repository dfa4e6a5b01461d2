"""Lossless buckets in few Triton kernels: the exact losses on a GPU.

The bins and their sums are those of ``exact``. What differs suits a device that computes faster
than it reads memory, and reads faster than it starts the next operation:

- The logits are read once to be binned and once to be given their gradients. None is selected,
  so that the host need not wait; they are kept until backward.
- What ``exact`` gets from prefix sums and a tree is summed pair by pair over the 2P borders and the
  P positives: O(P^2) in registers, one launch each, and sums of terms that are not negative, in
  which nothing can cancel.
- Distances from the borders are summed as whole numbers of units, so that the order in which the
  device adds them does not matter: two runs are equal in every bit.
"""

from typing import Any

import torch
from torch import Tensor

from . import kernels
from .exact import Histogram
from .objective import LogitsGrad, LogitsTables, stretch_of

# Copies of the table of sums: on an H200, 1e8 logits of a trained detector are binned in 36 ms with
# one, 7 with 8, 2.1 with 64 and 1.3 with 256. A table a program would cost memory and time itself.
_MOST_COPIES, _LOGITS_A_COPY, _BINS_OF_COPIES = 256, 1 << 16, 1 << 21
_PEELED = 2
_BLOCK = 1024
_PAIRS = {"ROWS": 8, "COLUMNS": 128}


class FusedBins(LogitsTables):
    """Sums of relations by Triton kernels, for logits of at most 32 bits."""

    def __init__(self, positives: Tensor, delta: float) -> None:
        super().__init__(positives.double(), delta)
        self._low, self._high = self.positives - delta, self.positives + delta
        both = torch.cat([self._low, self._high]) if delta > 0 else self.positives
        self.borders = both.sort().values
        per_unit = 1 / (2 * delta) if delta > 0 else 0.0
        self._pair = {"per_unit": per_unit, "STEP": delta == 0, **_PAIRS}
        self._place = {
            "num_borders": len(self.borders),
            "first_step": 1 << len(self.borders).bit_length() - 1,
            "INCLUSIVE": delta == 0,
        }

    def read(self, logits: Tensor, positives: Tensor, ignored: Tensor | None) -> Tensor:
        count, bins = logits.numel(), len(self.borders) + 1
        copies = max(1, min(_MOST_COPIES, count // _LOGITS_A_COPY, _BINS_OF_COPIES // bins))
        sums = torch.zeros(copies * bins * 2 + 1, dtype=torch.int64, device=logits.device)
        poison = sums[-1].view(torch.float64)  # 0 has the same bits
        # As many units in the width of a rise as let the sum of all logits fit into 62 bits.
        most = 1 << 62 - max(1, count.bit_length())
        width = 2 * self.delta if self.delta > 0 else 1.0
        blocks, more = _blocks(count), _blocks(len(positives))
        kernels.bin_logits[(blocks + more,)](
            logits.contiguous(), ignored, positives.contiguous(), self.borders, sums, poison,
            num_logits=count, stretch=stretch_of(logits, ignored), num_positives=len(positives),
            blocks=blocks, copies=copies, most_units=most, units=most / width, **self._place,
            PEELED=_PEELED, BLOCK=_BLOCK,
        )  # fmt: skip
        self.negatives = Histogram(*self.borders.new_empty(2, bins))
        kernels.add_copies[(-(-bins // 128),)](
            sums, *self.negatives, bins, copies, width / most, BLOCK=128
        )
        return poison

    def positives_above(self, weights: Tensor | None = None) -> Tensor:
        weights = torch.ones_like(self.positives) if weights is None else weights
        below, others = self._sum_pairs(self.positives, weights[None])
        return (below + others)[0]

    def negatives_above(self) -> Tensor:
        assert self.negatives is not None
        out = torch.empty_like(self.positives)
        kernels.sum_bins_above[_rows(len(out))](
            self.borders, *self.negatives, self._low, self._high, out,
            len(out), len(self.borders), **self._pair,
        )  # fmt: skip
        return out

    def positives_above_by_quality(
        self, qualities: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self._sum_pairs(qualities, weights)

    def spread_to_worse(self, qualities: Tensor, share: Tensor) -> Tensor:
        # H(a - b) seen from the other end: the same sums over the mirrored axes.
        return self._sum_pairs(qualities, share[None], sign=-1)[0][0]

    def _sum_pairs(self, keys: Tensor, weights: Tensor, sign: int = 1) -> tuple[Tensor, Tensor]:
        below, others = torch.empty_like(weights), torch.empty_like(weights)
        kernels.sum_pairs[(*_rows(len(keys)), len(weights))](
            self.positives, keys.contiguous(), weights.contiguous(), below, others, len(keys), sign,
            delta=self.delta, **self._pair,
        )  # fmt: skip
        return below, others

    def spread(self, share: Tensor) -> "FusedGradient":
        base, slope = self.borders.new_empty(2, len(self.borders) + 1)
        kernels.profile_bins[_rows(len(base))](
            self.borders, self._low, self._high, share.contiguous(), base, slope,
            len(share), len(self.borders), **self._pair,
        )  # fmt: skip
        return FusedGradient(self.borders, base, slope, self._place)


class FusedGradient(LogitsGrad):
    """In each bin, a base, and a slope times the distance from the border below."""

    def __init__(self, borders: Tensor, base: Tensor, slope: Tensor, place: dict[str, Any]) -> None:
        self._tables, self._place = (borders, base, slope), place

    def write(self, logits: Tensor, ignored: Tensor | None, upstream: Tensor) -> Tensor:
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
        kernels.write_gradient[(_blocks(logits.numel()),)](
            logits.contiguous(), ignored, *self._tables, upstream, grad,
            logits.numel(), stretch_of(logits, ignored), **self._place, BLOCK=_BLOCK,
        )  # fmt: skip
        return grad


def try_out(device: torch.device) -> None:
    """Run every kernel on a few logits; raises whatever keeps Triton from it."""
    with torch.cuda.device_of(torch.empty(0, device=device)):
        logits = torch.tensor([0.0, 1.0, 0.25, -9.0], device=device)
        places = torch.tensor([0, 1], device=device)
        for delta, expected in ((0.0, [1.0, 0.0]), (0.5, [0.75, 0.0])):
            bins = FusedBins(logits[places], delta)
            bins.read(logits, places, None)
            bins.positives_above()
            grad = bins.spread(torch.ones_like(bins.positives)).write(logits, None, logits[1])
            found = [bins.negatives_above().tolist(), grad.tolist()[2:]]
            if found != [expected, [expected[0] / 2, 0.0]]:
                raise RuntimeError(f"they give {found} for delta {delta}")


def _blocks(count: int) -> int:
    return -(-count // _BLOCK)


def _rows(count: int) -> tuple[int]:
    return (-(-count // _PAIRS["ROWS"]),)
