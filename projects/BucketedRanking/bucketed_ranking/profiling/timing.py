"""Timing of losses on one case, so that what disturbs the machine disturbs all alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from . import memory
from .cases import Case
from .steps import Step, Steps, algorithm_of

_LIGHT_POSITIVES = 64
"""A loop's warm-up and memory are taken with so few positives: both depend on the logits alone."""


@dataclass(frozen=True)
class TimingOptions:
    """How often and how long losses are called.

    Attributes:
        repeats: timed calls of each loss.
        warmup: calls before, which do not count.
        max_seconds: what one call may take, and after how many a loss is not repeated any more.
    """

    repeats: int = 7
    warmup: int = 2
    max_seconds: float = 20.0


@dataclass
class Entry:
    """What one loss cost on one case; without `seconds` it was skipped, and `skipped` says why."""

    loss: str
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    predicted_seconds: float | None = None
    skipped: str | None = None


def measure_case(
    case: Case,
    losses: Sequence[str],
    options: TimingOptions,
    advance: Callable[[str], None] = lambda _: None,
) -> list[Entry]:
    """Time and memory of every loss on a case.

    Memory comes first, then warm-up, then the timed calls: in every repeat each loss is called
    once, the order moving on by one loss from repeat to repeat.

    Args:
        advance: called with a few words before each loss is prepared and before each repeat.
    """
    entries = [Entry(loss) for loss in losses]
    build = Steps(case).build
    steps: dict[str, Step] = {}
    for entry in entries:
        advance(f"{case.name}: {entry.loss}")
        entry.skipped = _obstacle(entry, case, options)
        if entry.skipped is None:
            _try(entry, lambda e: steps.update({e.loss: build(e.loss)}))
        if entry.skipped is None:
            _try(entry, lambda e: _warm_up(e, steps[e.loss], case, options))
    running = [entry for entry in entries if entry.skipped is None]
    for repeat in range(options.repeats):
        advance(f"{case.name}: repeat {repeat + 1} of {options.repeats}")
        first = repeat % max(1, len(running))
        for entry in running[first:] + running[:first]:
            if sum(entry.seconds) < options.max_seconds and entry.skipped is None:
                _try(entry, lambda e: e.seconds.append(timed(steps[e.loss], case.logits.device)))
    return entries


def num_advances(num_cases: int, num_losses: int, options: TimingOptions) -> int:
    """How often `measure_case` calls `advance` over so many cases."""
    return num_cases * (num_losses + options.repeats)


def timed(step: Step, device: torch.device) -> float:
    """Seconds of one call, until the device has done it."""
    synchronise(device)
    start = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _obstacle(entry: Entry, case: Case, options: TimingOptions) -> str | None:
    """Why a loss had better not be called at all."""
    if case.num_positives == 0 and entry.loss != "sort":
        return "the case has no positives"
    needed = memory.predicted_bytes(entry.loss, case)
    available = memory.available_bytes(case.logits.device)
    if available is not None and needed > available:
        return (
            f"predicted to need {needed / 2**30:.1f} GiB of memory; "
            f"{available / 2**30:.1f} GiB are free"
        )
    _try(entry, lambda e: _predict(e, case))
    seconds = entry.predicted_seconds
    if seconds is not None and seconds > options.max_seconds:
        return f"predicted to take {seconds:.3g} s a call; at most {options.max_seconds:g} s wanted"
    return entry.skipped


def _predict(entry: Entry, case: Case) -> None:
    """Foretell the time of what grows with P x N or P x P, from two calls with fewer positives."""
    count = case.num_positives
    algorithm = algorithm_of(entry.loss)
    if algorithm == "loop" and count > 16:
        fewer, more, power = 4, 16, 1
    elif algorithm == "bucketed" and count > 2000:
        fewer, more, power = count // 8, count // 4, 2
    else:
        return
    few, many = (_seconds_thinned(entry.loss, case, c) for c in (fewer, more))
    slope = max(0.0, many - few) / (more**power - fewer**power)
    entry.predicted_seconds = many + slope * (count**power - more**power)


def _seconds_thinned(loss: str, case: Case, count: int) -> float:
    step = Steps(case.thinned(count)).build(loss)
    return min(timed(step, case.logits.device) for _ in range(2))


def _warm_up(entry: Entry, step: Step, case: Case, options: TimingOptions) -> None:
    device = case.logits.device
    light = algorithm_of(entry.loss) == "loop" and case.num_positives > _LIGHT_POSITIVES
    if light:
        step = Steps(case.thinned(_LIGHT_POSITIVES)).build(entry.loss)
    entry.peak_bytes = memory.peak_bytes(step, device)
    for _ in range(options.warmup):
        seconds = timed(step, device)
        if seconds > options.max_seconds:
            entry.skipped = f"one call took {seconds:.3g} s; at most {options.max_seconds:g} s"
            entry.skipped += " wanted"
            return


def _try(entry: Entry, action: Callable[[Entry], None]) -> None:
    """Do something for an entry; running out of memory skips the entry."""
    try:
        action(entry)
        return
    except (MemoryError, RuntimeError) as error:
        if not memory.is_out_of_memory(error):
            raise
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    entry.skipped = f"out of memory: {first_line}"
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
