"""How long calls take and how much memory they need: the one way in which all is measured here."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

Call = Callable[[], object]

MEMORY_METHODS = {
    "cuda": "torch.cuda.max_memory_allocated during one call, less what was allocated before",
    "cpu": "peak of the running sum of torch's CPU allocations, from the memory events of "
    "torch.profiler, over one call of its own",
}


@dataclass(frozen=True)
class TimingOptions:
    """`repeats` timed calls after `warmup` others; `max_seconds` is what one call may take, and
    after how many seconds a call is not repeated any more."""

    repeats: int = 7
    warmup: int = 2
    max_seconds: float = 20.0


@dataclass
class Timing:
    """What one call cost; without `seconds` it was skipped, and `skipped` says why."""

    name: str
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    predicted_seconds: float | None = None
    skipped: str | None = None


def time_calls(
    timings: Sequence[Timing],
    calls: dict[str, Call],
    device: torch.device,
    options: TimingOptions,
    advance: Callable[[str], None] = lambda _: None,
) -> None:
    """Time the calls that are not skipped: in every repeat each once, so that what disturbs the
    machine disturbs all alike. The order moves on by one from repeat to repeat; `advance` is called
    before each with a few words."""
    running = [timing for timing in timings if timing.skipped is None]
    for repeat in range(options.repeats):
        advance(f"repeat {repeat + 1} of {options.repeats}")
        first = repeat % max(1, len(running))
        for timing in running[first:] + running[:first]:
            if timing.skipped is None and sum(timing.seconds) < options.max_seconds:
                with skip_without_memory(timing):
                    timing.seconds.append(timed(calls[timing.name], device))


def warm_up(timing: Timing, call: Call, device: torch.device, options: TimingOptions) -> None:
    """Calls that do not count; one that takes too long marks the timing as skipped."""
    for _ in range(options.warmup):
        seconds = timed(call, device)
        if seconds > options.max_seconds:
            wanted = f"at most {options.max_seconds:g} s wanted"
            timing.skipped = f"one call took {seconds:.3g} s; {wanted}"
            return


def timed(call: Call, device: torch.device) -> float:
    """Seconds of one call, until the device has done it."""
    on_accelerator = device.type != "cpu"
    if on_accelerator:
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    call()
    if on_accelerator:
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


@contextmanager
def skip_without_memory(timing: Timing) -> Iterator[None]:
    """Running out of memory inside the `with` statement marks the timing as skipped."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        timing.skipped = f"out of memory: {(str(error) or type(error).__name__).splitlines()[0]}"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    words = ("allocate memory", "not enough memory", "out of memory")  # as torch says it
    told = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return told or isinstance(error, MemoryError)


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """The most memory in bytes that a call holds beyond what was held before it; None on devices
    other than the CPU and CUDA, where it cannot be measured."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        timed(call, device)
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_on_cpu(call) if device.type == "cpu" else None


def _peak_on_cpu(call: Call) -> int:
    # Kineto, below the profiler, else tells of every start and stop; it reads this only once.
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    # The public events attribute memory to operators, which hides its order in time.
    events = profile.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        peak = max(peak, held)
    return peak
