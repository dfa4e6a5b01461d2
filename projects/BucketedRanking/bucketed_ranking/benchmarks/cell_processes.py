"""Runs the cells of a table, each in a process of its own, as many at a time as have a place."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import mean
from types import FrameType

from rich.console import Console
from rich.text import Text

from ..console import ProgressDisplay, number
from ..engine.run_folder import is_run
from ..engine.run_records import Record
from ..published import TASKS, published
from . import cell_records as records
from .cells import Cell
from .output import in_words

_POLL_SECONDS, _SHOW_SECONDS = 0.5, 2.0
_PLAIN_INTERVAL_S = 60.0
_INTERRUPTED = 130
# Starting a process, building the detector, reading the data set.
_START_SECONDS = 15.0
# What the evaluations and checkpoints of a run cost beside its training.
_EVALUATION_SHARE = 0.25
_STYLES = {records.FAILED: "bold red", records.OBSTRUCTED: "yellow"}


@dataclass(frozen=True)
class Place:
    """Where one cell at a time runs.

    Attributes:
        gpus: indices of the GPUs that are its own; empty on the CPU.
        processes: of a cell; one a GPU.
        threads: of torch in each, where cells share the cores; None leaves them to torch.
    """

    gpus: tuple[int, ...] = ()
    processes: int = 1
    threads: int | None = None

    def environment(self) -> dict[str, str]:
        """The environment of a process in this place."""
        environment = dict(os.environ)
        if self.gpus:
            given = environment.get("CUDA_VISIBLE_DEVICES")
            names = given.split(",") if given else list(map(str, range(max(self.gpus) + 1)))
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(names[index] for index in self.gpus)
        if self.threads:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        return environment


def make_places(num_gpus: int, processes: int, jobs: int) -> list[Place]:
    """Places for cells of so many processes, over the GPUs, or where there are none, for so many
    cells at a time on the CPU."""
    if num_gpus:
        first = range(0, num_gpus - processes + 1, processes)
        return [Place(tuple(range(start, start + processes)), processes) for start in first]
    threads = None if jobs == 1 else max(1, (os.cpu_count() or 1) // (jobs * processes))
    return [Place(processes=processes, threads=threads)] * jobs


def seconds_per_iteration(
    config: str, loss: str, known: Iterable[Record]
) -> tuple[float, str] | None:
    """As finished cells of the same detector took, else as published, and in words which of these;
    None where nothing is known."""
    same = [record for record in known if record["config"] == config]
    same = [record for record in same if record.get("seconds_per_iteration")]
    for seen, source in (
        ([record for record in same if record["loss"] == loss], "finished cells"),
        (same, "finished cells with other losses"),
    ):
        if seen:
            return mean(record["seconds_per_iteration"] for record in seen), source
    row = published(config, loss)
    seconds = row and row.seconds_per_iteration
    return (seconds, "published, 4 A100") if seconds else None


def seconds_left(record: Record, known: Iterable[Record]) -> float | None:
    """Seconds that a cell still takes, were it started now; None where nothing is known."""
    pace = seconds_per_iteration(record["config"], record["loss"], known)
    left = record["max_iter"] - record["iterations"]
    return _START_SECONDS + pace[0] * left * (1 + _EVALUATION_SHARE) if pace else None


@dataclass
class _Process:
    cell: Cell
    place: Place
    popen: subprocess.Popen
    start_iter: int
    started: float = field(default_factory=time.monotonic)

    def kill(self) -> None:
        """End it, with all processes that it has started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)


class CellRunner:
    """Runs every cell that is not finished and can be run, and tells how each ended.

    A cell that fails does not stop the others.
    """

    def __init__(self, cells: Sequence[Cell], places: Sequence[Place], console: Console) -> None:
        self.known = {cell: records.read_record(cell) for cell in cells}
        self.waiting = [cell for cell, record in self.known.items() if records.is_to_do(record)]
        self.free, self.console, self.num_places = list(places), console, len(places)
        for record in self.known.values():
            if not records.is_to_do(record):
                _tell(console, record)
        self.total, self.signals = len(self.waiting), 0
        self.running: list[_Process] = []
        self.shown = float("-inf")

    def run(self) -> bool:
        """Run them; False where SIGINT or SIGTERM stopped it, once the cells under way have saved
        a checkpoint."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.signal(each, self._receive) for each in signals}
        try:
            with ProgressDisplay(self.total, self.console, _PLAIN_INTERVAL_S) as progress:
                while self.running or (self.waiting and not self.signals):
                    while self.waiting and self.free and not self.signals:
                        self._start(self.waiting.pop(0), self.free.pop(0))
                    for process in list(self.running):
                        if process.popen.poll() is not None:
                            self._end(process)
                    self._show(progress)
                    time.sleep(_POLL_SECONDS)
        finally:
            for process in self.running:
                process.kill()
            for each, handler in before.items():
                signal.signal(each, handler)
        return not self.signals

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """The first signal lets the cells save a checkpoint, the second one ends them."""
        self.signals += 1
        for process in self.running:
            if self.signals == 1:
                process.popen.send_signal(signal.SIGINT)
            else:
                process.kill()

    def _start(self, cell: Cell, place: Place) -> None:
        cell.log.parent.mkdir(parents=True, exist_ok=True)
        with cell.log.open("w") as log:
            popen = subprocess.Popen(
                cell.command(),
                env=place.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches it once, through this process
            )
        start_iter = records.read_record(cell)["iterations"]
        self.running.append(_Process(cell, place, popen, start_iter))

    def _end(self, process: _Process) -> None:
        cell, code = process.cell, process.popen.returncode
        self.running.remove(process)
        self.free.append(process.place)
        state = records.read_record(cell)["state"]
        if self.signals:
            if not is_run(cell.folder):
                cell.log.unlink(missing_ok=True)  # stopped before its run had begun
        elif code not in (0, _INTERRUPTED) and state != records.FAILED:
            records.write_failure(cell, _death(cell, code))
        self.known[cell] = records.read_record(cell)
        _tell(self.console, self.known[cell])

    def _show(self, progress: ProgressDisplay) -> None:
        if time.monotonic() < self.shown + _SHOW_SECONDS:
            return
        self.shown = time.monotonic()
        known, under_way = list(self.known.values()), []
        left = [seconds_left(self.known[cell], known) for cell in self.waiting]
        for process in self.running:
            cell, start = process.cell, process.start_iter
            record = records.read_record(cell)
            iterations = max(record["iterations"], start)
            under_way.append(f"{cell.name} {iterations}/{cell.max_iter}")
            # By its own pace once it has shown one.
            pace = (time.monotonic() - process.started) / max(1, iterations - start)
            own = pace * (cell.max_iter - iterations) if iterations > start else None
            left.append(seconds_left(record, known) if own is None else own)
        if under_way:
            times = [seconds for seconds in left if seconds is not None]
            more = "" if len(times) == len(left) else "at least "
            time_left = f"{more}{in_words(sum(times) / self.num_places)}" if times else "unknown"
            text = f"{time_left} left; {', '.join(under_way)}"
            done = self.total - len(self.waiting) - len(self.running)
            progress.show(done, f"{done}/{self.total} cells done, {text}", text)


def _death(cell: Cell, code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", which the system sends when memory runs out" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"
    return records.last_line(cell.log) or f"the process ended with exit code {code}"


def _tell(console: Console, record: Record) -> None:
    if record["state"] == records.FINISHED:
        task = next(task for task in TASKS if f"{task}_AP" in record)
        seconds = number(record["seconds_per_iteration"], 3)
        rest = f"{TASKS[task]} AP {number(record[f'{task}_AP'], 1)}, {seconds} s/iteration"
    else:
        rest = record["error"] or f"{record['iterations']} of {record['max_iter']} iterations"
    text = f"{record['name']}: {record['state']}, {rest}"
    console.print(Text(text, style=_STYLES.get(record["state"], "")), soft_wrap=True)
