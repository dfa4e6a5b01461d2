"""Several training processes: started by Detectron2, torchrun or Slurm, and stopped together.

A signal may reach the command, one process or all of them. Each process only notes it; after the
iteration they agree, so that all end at the same one (see :class:`.hooks.SaveOnInterrupt`).
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ..errors import BucketRankError

# A signal to the group, from a terminal or a scheduler, reaches a process twice: by itself and
# through whoever started it. Two within this time are one.
_ONE_SIGNAL_S = 1.0
# So long a process has after the second signal.
_GRACE_S = 5.0


class TrainingInterruptedError(Exception):
    """Training was stopped by the user or the system after saving a checkpoint."""

    def __init__(self, iteration: int):
        super().__init__(iteration)
        self.iteration = iteration


class Processes(NamedTuple):
    """How many processes train together; each machine runs the same command with its own rank."""

    per_machine: int = 1
    machines: int = 1
    machine_rank: int = 0
    url: str = "auto"
    """Where they meet, such as tcp://10.0.0.1:29500; "auto" on one machine."""
    on_gpus: bool = False
    """Whether the CPU will not do."""

    @property
    def total(self) -> int:
        """Their number on all machines."""
        return self.per_machine * self.machines

    def check(self, device: str) -> None:
        """BucketRankError if these processes cannot train on `device`."""
        if self.total > 1 and device.startswith("cuda:"):
            raise BucketRankError(
                f"{self.total} processes take a GPU each, but the device is {device}; give "
                "--device cuda, and CUDA_VISIBLE_DEVICES for a choice of GPUs."
            )
        if (device == "cuda" or self.on_gpus) and self.per_machine > torch.cuda.device_count():
            raise BucketRankError(
                f"{self.per_machine} processes need a GPU each, but this machine has "
                f"{torch.cuda.device_count()}."
            )
        if not 0 <= self.machine_rank < self.machines:
            raise BucketRankError(
                f"--machine-rank is {self.machine_rank}, but {self.machines} machines have the "
                f"ranks 0 to {self.machines - 1}."
            )
        if self.machines > 1 and self.url == "auto":
            raise BucketRankError(
                "Several machines need --dist-url, the address of the first one and a free port, "
                "such as tcp://10.0.0.1:29500."
            )


class StartedOutside(NamedTuple):
    """This process' place among those that torchrun or srun has started."""

    rank: int
    total: int
    local_rank: int
    per_machine: int


def started_outside(environment: Mapping[str, str] = os.environ) -> StartedOutside | None:
    """What torchrun's or, in a step of several tasks, Slurm's variables say; None without them.

    Raises:
        BucketRankError: Slurm's tasks are not told where to meet.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= environment.keys():
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return StartedOutside(*(int(environment[name]) for name in names))
    total = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if total == 1:
        return None
    if not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        raise BucketRankError(
            f"srun started {total} tasks, but MASTER_ADDR and MASTER_PORT, where they meet, are "
            "not set; docs/distributed.md has a script that sets them."
        )
    nodes = int(environment["SLURM_STEP_NUM_NODES"])
    rank, local_rank = (int(environment[name]) for name in ("SLURM_PROCID", "SLURM_LOCALID"))
    return StartedOutside(rank, total, local_rank, total // nodes)


def is_first_process(processes: Processes | None = None) -> bool:
    """Whether this process, or the first of those that it starts, is the one that writes."""
    outside = started_outside()
    return outside.rank == 0 if outside else processes is None or processes.machine_rank == 0


class StopRequest:
    """Notes SIGINT and SIGTERM while the context lasts; a second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopRequest":
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
            self.first()
        elif time.monotonic() > self._since + _ONE_SIGNAL_S:
            self.again()

    def first(self) -> None:
        """What the first signal does at once."""

    def again(self) -> None:
        """What a further one does."""
        raise KeyboardInterrupt


class _ForwardedStop(StopRequest):
    """Hands signals on to the processes that were started here, and waits for them."""

    def first(self) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGTERM)

    def again(self) -> None:
        self.first()
        timer = threading.Timer(_GRACE_S, _kill_children)
        timer.daemon = True
        timer.start()


def _kill_children() -> None:
    for child in multiprocessing.active_children():
        child.kill()


def run_together(
    function: Callable[..., None], processes: Processes, device: str, args: tuple[Any, ...]
) -> None:
    """Call `function(*args, stop)` in every process, in one group of PyTorch distributed.

    `stop` is a :class:`StopRequest`. With one process that is this one. On GPUs the backend is
    NCCL, on the CPU gloo. Threads are divided over the processes of the CPU, unless OMP_NUM_THREADS
    is set.

    Raises:
        TrainingInterruptedError: they were stopped.
        BucketRankError: raised by one of them, or one was killed.
        KeyboardInterrupt: a second signal, or one before training began, ended them.
    """
    outside = started_outside()
    if outside is None and processes.total == 1:
        with StopRequest() as stop:
            function(*args, stop)
        return
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Detectron2 takes NCCL where it sees a GPU
    if outside is not None:
        with _joined(outside, device), StopRequest() as stop:
            function(*args, stop)
        return
    threads = max(1, torch.get_num_threads() // processes.per_machine)
    raised = multiprocessing.get_context("spawn").SimpleQueue()
    with _ForwardedStop() as stop:
        try:
            launch(
                _take_part,
                processes.per_machine,
                num_machines=processes.machines,
                machine_rank=processes.machine_rank,
                dist_url=processes.url,
                args=(function, args, raised, threads),
            )
        except (ProcessExitedException, ProcessRaisedException) as error:
            if stop.received is not None:
                raise KeyboardInterrupt from error
            if not raised.empty():
                raise raised.get() from error
            if isinstance(error, ProcessExitedException) and error.signal_name:
                hint = ", which the system sends when memory runs out"
                raise BucketRankError(
                    f"Training process {error.error_index} was ended by {error.signal_name}"
                    f"{hint if error.signal_name == 'SIGKILL' else ''}; the same command with "
                    "--resume goes on from the last checkpoint."
                ) from error
            raise
    if not raised.empty():
        raise raised.get()


def _take_part(
    function: Callable[..., None], args: tuple[Any, ...], raised: Any, threads: int
) -> None:
    """What a process does that was started here; what the user is to hear goes into `raised`."""
    with StopRequest() as stop:
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(threads)
        try:
            function(*args, stop)
        except TrainingInterruptedError as error:
            raised.put(error)  # and end well, or torch would end the others
        except BucketRankError as error:
            raised.put(error)
            raise


@contextmanager
def _joined(place: StartedOutside, device: str) -> Iterator[None]:
    """Take this place in the group while the context lasts."""
    backend = "gloo" if device == "cpu" else "nccl"
    dist.init_process_group(backend, rank=place.rank, world_size=place.total)
    try:
        comm.create_local_process_group(place.per_machine)
        if backend == "nccl":
            torch.cuda.set_device(place.local_rank)
        yield
    finally:
        dist.destroy_process_group()
