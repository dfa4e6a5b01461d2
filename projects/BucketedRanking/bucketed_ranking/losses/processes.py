"""What processes that rank their logits together tell each other: their positives, and tables of
the size of all positives. Every process must make the same calls, whatever its own data."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

AT_ONCE = 512
"""Rows that a process sends before it knows how many the others have: 4 KB of float32 pairs, which
take no longer than their number alone would."""


def gather_rows(rows: Tensor, group: "dist.ProcessGroup") -> tuple[Tensor, slice]:
    """The rows of all processes in the order of their ranks, and which of them are this process'.

    ``rows`` are [R, K], float32 or float64, R of each process' own, K and the type common. One
    collective, of a fixed size, and a second where a process has more rows than that takes. The
    host waits for the first, which says how many rows there are.
    """
    block = rows.new_zeros(1 + AT_ONCE, rows.shape[1])
    block[0] = len(rows)
    block[1 : 1 + len(rows)] = rows[:AT_ONCE]
    blocks = _gather(block, group)
    counts = [int(count) for count in torch.stack([each[0, 0] for each in blocks]).tolist()]
    parts = [each[1 : 1 + count] for each, count in zip(blocks, counts, strict=True)]
    most = max(counts) - AT_ONCE
    if most > 0:
        rest = rows[AT_ONCE:]
        rests = _gather(pad(rest, (0, 0, 0, most - len(rest))), group)
        for rank, count in enumerate(counts):
            parts[rank] = torch.cat([parts[rank], rests[rank][: max(count - AT_ONCE, 0)]])
    start = sum(counts[: dist.get_rank(group)])
    return torch.cat(parts), slice(start, start + len(rows))


def sum_in_place(tensors: Sequence[Tensor], group: "dist.ProcessGroup") -> None:
    """Replace tensors by their sums over the processes, in one collective, in the widest of their
    types."""
    total = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(total, group=group)
    for tensor, part in zip(tensors, total.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _gather(tensor: Tensor, group: "dist.ProcessGroup") -> list[Tensor]:
    found = [torch.empty_like(tensor) for _ in range(group.size())]
    dist.all_gather(found, tensor.contiguous(), group=group)
    return found
