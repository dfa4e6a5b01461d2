"""Real processes for tests, joined by gloo on the CPU, and what they run."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from bucketed_ranking.losses import RankingLoss, autograd


def run_processes(count: int, function: Callable, *arguments: Any) -> list[Any]:
    """What `function(rank, *arguments)` returns in each of `count` processes, in order of rank.

    The processes are a process group. The function must be importable from a module of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = count, folder, function, arguments
        torch.multiprocessing.spawn(_run, given, nprocs=count, join=True)
        return [torch.load(_result(folder, rank), weights_only=False) for rank in range(count)]


def _run(rank: int, count: int, folder: str, function: Callable, arguments: tuple) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    torch.save(function(rank, *arguments), _result(folder, rank))
    dist.destroy_process_group()


def _result(folder: str, rank: int) -> Path:
    return Path(folder) / f"{rank}.pth"


@contextmanager
def sent() -> Iterator[list[int]]:
    """The bytes of every tensor that this process hands to a collective, in order."""
    sizes: list[int] = []
    gather, reduce = dist.all_gather, dist.all_reduce

    def all_gather(found: list[Tensor], tensor: Tensor, **how: Any) -> Any:
        sizes.append(tensor.nbytes)
        return gather(found, tensor, **how)

    def all_reduce(tensor: Tensor, **how: Any) -> Any:
        sizes.append(tensor.nbytes)
        return reduce(tensor, **how)

    with mock.patch.multiple(dist, all_gather=all_gather, all_reduce=all_reduce):
        yield sizes


def rank_parts(rank: int, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Losses of this process' parts of the cases, gradients of their sum with weights 1, 2, ...,
    and the bytes of each collective.

    A case has the "loss" and its "options", and as "parts" of each process logits, targets and box
    losses.
    """
    results = []
    for case in cases:
        logits, targets, boxes = (part.clone() for part in case["parts"][rank])
        with sent() as sizes:
            losses = RankingLoss(case["loss"], **case["options"])(
                logits.requires_grad_(), targets, boxes.requires_grad_(), group=dist.group.WORLD
            )
            sum(weight * loss for weight, loss in enumerate(losses.values(), 1)).backward()
        results.append(
            {
                "losses": torch.stack(list(losses.values())).detach(),
                "grad": logits.grad,
                "box_grad": boxes.grad,
                "sent": sizes,
            }
        )
    return results


def rank_parts_by_kernels(rank: int, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``rank_parts`` by the kernels of a GPU, in Triton's interpreter."""
    with mock.patch.object(autograd, "_can_fuse", return_value=True):
        return rank_parts(rank, cases)
