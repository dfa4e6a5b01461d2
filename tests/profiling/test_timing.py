"""How losses are called, and when they are not."""

from dataclasses import replace

import pytest
import torch

from bucketed_ranking.profiling import memory, timing
from bucketed_ranking.profiling.cases import GridPoint, make_case
from bucketed_ranking.profiling.steps import Steps
from bucketed_ranking.profiling.timing import TimingOptions, measure_case, num_advances

QUICK = TimingOptions(repeats=3, warmup=1)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The losses in the order of their calls, which do nothing and take a second each."""
    done: list[str] = []
    monkeypatch.setattr(Steps, "build", lambda self, loss: lambda: done.append(loss))

    def one_second(step, device) -> float:
        step()
        return 1.0

    monkeypatch.setattr(timing, "timed", one_second)
    monkeypatch.setattr(memory, "peak_bytes", lambda step, device: 8)
    return done


def test_every_repeat_calls_each_loss_once_in_moving_order(case, calls):
    entries = measure_case(case, ["brs", "focal", "ce"], TimingOptions(repeats=3, warmup=0))
    assert calls == ["brs", "focal", "ce", "focal", "ce", "brs", "ce", "brs", "focal"]
    assert [entry.seconds for entry in entries] == [[1.0] * 3] * 3


def test_a_loss_is_not_repeated_beyond_its_time(case, calls):
    options = TimingOptions(repeats=9, warmup=0, max_seconds=2.5)
    (entry,) = measure_case(case, ["brs"], options)
    assert entry.seconds == [1.0] * 3
    assert entry.skipped is None


def test_a_call_that_takes_too_long_is_the_only_one(case, calls):
    (entry,) = measure_case(case, ["focal"], TimingOptions(repeats=9, warmup=3, max_seconds=0.5))
    assert calls == ["focal"]
    assert entry.skipped == "one call took 1 s; at most 0.5 s wanted"
    assert entry.seconds == []


def test_a_loop_that_would_take_too_long_is_not_called(monkeypatch):
    case = make_case(GridPoint("start", 1000, 5000), dtype=torch.float32, device="cpu", seed=0)
    monkeypatch.setattr(timing, "_seconds_thinned", lambda loss, case, count: 2 + count)
    entries = measure_case(case, ["rs", "focal"], QUICK)
    assert entries[0].predicted_seconds == pytest.approx(1002)
    assert entries[0].skipped == "predicted to take 1e+03 s a call; at most 20 s wanted"
    assert len(entries[1].seconds) == 3


def test_bucketed_losses_are_predicted_to_grow_with_pairs(monkeypatch):
    case = make_case(GridPoint("start", 4000, 5000), dtype=torch.float32, device="cpu", seed=0)
    monkeypatch.setattr(timing, "_seconds_thinned", lambda loss, case, count: count**2 / 1e5)
    (entry,) = measure_case(case, ["brs"], QUICK)
    assert entry.predicted_seconds == pytest.approx(160)
    assert entry.skipped


def test_what_does_not_fit_into_memory_is_marked(case, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    (entry,) = measure_case(case, ["focal"], QUICK)
    assert "GiB are free" in entry.skipped
    assert entry.seconds == []


@pytest.mark.parametrize("error", [MemoryError("none left"), RuntimeError("can't allocate memory")])
def test_running_out_of_memory_skips_one_loss(case, monkeypatch, error):
    build = Steps.build

    def failing() -> None:
        raise error

    monkeypatch.setattr(
        Steps, "build", lambda self, loss: failing if loss == "brs" else build(self, loss)
    )
    brs, exact = measure_case(case, ["brs", "rs-exact"], QUICK)
    assert brs.skipped == f"out of memory: {error}"
    assert len(exact.seconds) == 3


def test_other_errors_are_not_hidden(case, monkeypatch):
    def failing() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Steps, "build", lambda self, loss: failing)
    with pytest.raises(RuntimeError, match="a bug"):
        measure_case(case, ["brs"], QUICK)


def test_a_case_without_positives_is_marked(case):
    nothing = {name: getattr(case, name)[:0] for name in ("positives", "qualities", "box_losses")}
    focal, sort = measure_case(replace(case, **nothing), ["focal", "sort"], QUICK)
    assert focal.skipped == "the case has no positives"
    assert sort.seconds


def test_progress_is_told_as_often_as_announced(case):
    told: list[str] = []
    measure_case(case, ["focal", "sort"], QUICK, told.append)
    assert len(told) == num_advances(1, 2, QUICK)
