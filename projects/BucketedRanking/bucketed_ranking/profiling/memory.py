"""Peak memory of a call: measured, and predicted where a call might not fit."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from .cases import Case, GridPoint
from .steps import algorithm_of

METHODS = {
    "cuda": "torch.cuda.max_memory_allocated during one call, less what was allocated before",
    "cpu": "peak of the running sum of torch's CPU allocations, from the memory events of "
    "torch.profiler, over one call of its own",
}

_BYTES_PER_LOGIT = {
    "loop": 40, "bucketed": 40, "exact": 40, "focal": 48, "ce": 16, "sort": 40,
}  # fmt: skip
"""Upper bounds on what a pass over float32 logits, all of them relevant, takes beside them.
Measured on the CPU: 32, 28, 27, 40, 8 and 20 bytes."""

_PAIR_ARRAYS = {"bap": 4, "brs": 5}
"""Upper bounds on how many float32 arrays of P x P are alive at once. Measured: 3.6 and 4."""


def peak_bytes(call: Callable[[], None], device: torch.device) -> int | None:
    """The most memory in bytes that a call holds beyond what was held before it.

    The gradient counts, the logits do not. None where it cannot be measured: on devices other than
    the CPU and CUDA.
    """
    if device.type == "cuda":
        return _peak_on_cuda(call, device)
    return _peak_on_cpu(call) if device.type == "cpu" else None


def _peak_on_cuda(call: Callable[[], None], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(call: Callable[[], None]) -> int:
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


def predicted_bytes(loss: str, case: Case) -> int:
    """An upper bound on `peak_bytes` of a pass of the loss over the case."""
    size = max(1.0, case.logits.element_size() / 4)
    per_logit = _BYTES_PER_LOGIT[algorithm_of(loss)] * case.logits.numel()
    pairs = _PAIR_ARRAYS.get(loss, 0) * 4 * case.num_positives**2
    return int(size * (per_logit + pairs))


def too_large_to_make(point: GridPoint, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a made-up case does not fit into memory; None where it does, or nobody knows."""
    count = point.positives + point.negatives
    # Numbers are drawn in float32 on the CPU, and what is drawn is looked at once more.
    for place, size in ((torch.device("cpu"), 6), (device, dtype.itemsize + 2)):
        available = available_bytes(place)
        if available is not None and count * size > available:
            return (
                f"the logits alone need {count * size / 2**30:.1f} GiB of memory; "
                f"{available / 2**30:.1f} GiB are free"
            )
    return None


def available_bytes(device: torch.device) -> int | None:
    """Memory in bytes that can still be had on a device; None where it is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved
    if device.type != "cpu":
        return None
    known = [size for size in (_free_of_machine(), _free_of_container()) if size is not None]
    return min(known, default=None)


def _free_of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _free_of_container() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())
        return max(0, limit - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    words = ("allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
