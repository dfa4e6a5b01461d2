"""The processes that read pictures for a training: forked for sure, and ended with it alone."""

import logging
import multiprocessing.util
import signal
import sys
from functools import cache
from multiprocessing.context import ForkContext, ForkProcess
from types import TracebackType
from typing import Any

from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

_FORK_SECONDS = 10.0
_ON_LINUX = sys.platform == "linux"


class _Worker(ForkProcess):
    """A forked process that has begun; one that does not is killed and forked again.

    Until Python 3.11 a child waits for ever if another thread, as those of gloo, was about to begin
    or end: the interpreter's lock for that stays taken in it (``_PyThreadState_DeleteExcept``).
    """

    @staticmethod
    def _Popen(worker: "_Worker") -> Any:  # noqa: N802
        seconds = _FORK_SECONDS
        while True:
            reader, worker.begun = multiprocessing.Pipe(duplex=False)
            with reader:
                with worker.begun:
                    forked = ForkProcess._Popen(worker)
                if reader.poll(seconds):  # begun, or dead, which its loader sees
                    return forked
            logger.warning("An image worker did not begin within %g s; another is started", seconds)
            forked.kill()
            forked.wait()
            seconds *= 2

    def run(self) -> None:
        with self.begun as begun:
            begun.send_bytes(b"begun")
        super().run()


class _Context(ForkContext):
    Process = _Worker


def fork_workers(loader: DataLoader) -> None:
    """Let the workers of a loader be forked, and live as long as this process.

    In a process that was itself spawned the default is to spawn: seconds for each worker.
    """
    if loader.num_workers and _ON_LINUX:
        loader.multiprocessing_context = _Context()
    loader.worker_init_fn = _leave_endings_to_the_trainer
    _kill_workers_at_exit()


def _leave_endings_to_the_trainer(worker: int) -> None:
    """A signal to the whole group is not for it, and the end of its trainer is not its to report.

    A thread of it (``multiprocessing.resource_sharer``) hands over pictures; a trainer killed in
    the middle of that breaks the connection.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _tell_unless_disconnected


def _tell_unless_disconnected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not isinstance(error, ConnectionError | EOFError):  # a trainer that lives raises it itself
        sys.__excepthook__(kind, error, trace)


@cache
def _kill_workers_at_exit() -> None:
    multiprocessing.util.Finalize(None, _kill_workers, exitpriority=100)


def _kill_workers() -> None:
    """What the end of a process does to its workers, which do not hear SIGTERM."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise, as for a worker that crashed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def lost_worker(error: BaseException) -> bool:
    """Whether an error says that a worker was killed; torch raises it wherever training is."""
    return isinstance(error, ConnectionError) or "DataLoader worker (pid" in str(error)
