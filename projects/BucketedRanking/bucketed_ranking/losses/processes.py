"""What processes that rank their logits together tell each other: their positives, and tables of
the size of all positives. Every process must make the same calls, whatever its own data."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad


def gather_rows(rows: Tensor, group: "dist.ProcessGroup") -> tuple[Tensor, slice]:
    """The rows of all processes in the order of their ranks, and which of them are this process'.

    ``rows`` are [R, K], R of each process' own, K and the type common. Two collectives; the host
    waits for the first, as R decides the shapes of all that follows.
    """
    counts = torch.cat(_gather(rows.new_full((1,), len(rows), dtype=torch.int64), group)).tolist()
    padded = _gather(pad(rows, (0, 0, 0, max(counts) - len(rows))), group)
    start = sum(counts[: dist.get_rank(group)])
    parts = [part[:count] for part, count in zip(padded, counts, strict=True)]
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
