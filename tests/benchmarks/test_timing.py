"""How calls are timed, and their memory."""

import pytest
import torch

from bucketed_ranking.benchmarks import timing
from bucketed_ranking.benchmarks.timing import Timing, TimingOptions

CPU = torch.device("cpu")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The names of calls in their order; each does nothing and takes a second."""
    done: list[str] = []
    monkeypatch.setattr(timing, "timed", lambda call, device: (call(), 1.0)[1])
    return done


def run(calls: list[str], names: list[str], options: TimingOptions) -> list[Timing]:
    timings = [Timing(name) for name in names]
    functions = {name: lambda name=name: calls.append(name) for name in names}
    timing.time_calls(timings, functions, CPU, options)
    return timings


def test_every_repeat_makes_each_call_once_in_moving_order(calls):
    timings = run(calls, ["brs", "focal", "ce"], TimingOptions(repeats=3))
    assert calls == ["brs", "focal", "ce", "focal", "ce", "brs", "ce", "brs", "focal"]
    assert [timing.seconds for timing in timings] == [[1.0] * 3] * 3


def test_a_call_is_not_repeated_beyond_its_time(calls):
    (only,) = run(calls, ["brs"], TimingOptions(repeats=9, max_seconds=2.5))
    assert only.seconds == [1.0] * 3
    assert only.skipped is None


def test_the_peak_counts_what_is_alive_at_once():
    def call() -> None:
        first = torch.zeros(100_000)
        del first
        second, third = torch.zeros(50_000), torch.zeros(75_000)
        del second, third

    assert 500_000 <= timing.peak_bytes(call, CPU) < 510_000


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
    assert timing.is_out_of_memory(error) is expected
