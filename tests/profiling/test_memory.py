"""Peak memory: measured and predicted."""

import pytest
import torch

from bucketed_ranking.profiling import memory
from bucketed_ranking.profiling.cases import GridPoint, make_case
from bucketed_ranking.profiling.steps import ALL_LOSSES, Steps

CPU = torch.device("cpu")


def test_the_peak_counts_what_is_alive_at_once():
    def call() -> None:
        first = torch.zeros(100_000)
        del first
        second, third = torch.zeros(50_000), torch.zeros(75_000)
        del second, third

    assert 500_000 <= memory.peak_bytes(call, CPU) < 510_000


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_no_loss_takes_more_than_predicted(loss):
    case = make_case(GridPoint("start", 300, 30_000), dtype=torch.float32, device="cpu", seed=0)
    peak = memory.peak_bytes(Steps(case).build(loss), CPU)
    # At this size, tables of a fixed size stand beside what grows.
    assert peak <= memory.predicted_bytes(loss, case) + 2**20


def test_only_the_bucketed_losses_hold_pairs(case):
    def predicted(loss: str, positives: int) -> int:
        point = GridPoint("start", positives, 100_000 - positives)
        case = make_case(point, dtype=torch.float32, device="cpu", seed=0)
        return memory.predicted_bytes(loss, case)

    assert predicted("rs-exact", 10_000) == predicted("rs-exact", 10)
    assert predicted("brs", 10_000) > 10_000**2 * 4


def test_a_case_that_does_not_fit_is_not_made():
    small, huge = GridPoint("start", 10, 100), GridPoint("start", 10, 10**13)
    assert memory.too_large_to_make(small, torch.float32, CPU) is None
    if memory.available_bytes(CPU) is not None:
        assert "GiB are free" in memory.too_large_to_make(huge, torch.float32, CPU)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_recognised(error, expected):
    assert memory.is_out_of_memory(error) is expected
