"""Runs the cells of a table, each in a process of its own, as many at a time as there is room."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from . import records
from .estimate import Estimates, in_words
from .grid import Cell

_POLL_SECONDS = 0.5
_PLAIN_INTERVAL_S = 60.0
_INTERRUPTED = 130


@dataclass(frozen=True)
class Slot:
    """Where one cell at a time runs.

    Attributes:
        gpus: indices of the GPUs that are its own; empty on the CPU.
        threads: of torch, where cells share the cores; None leaves them to torch.
    """

    gpus: tuple[int, ...] = ()
    threads: int | None = None

    def environment(self) -> dict[str, str]:
        """The environment of a process in this slot."""
        environment = dict(os.environ)
        if self.gpus:
            given = environment.get("CUDA_VISIBLE_DEVICES")
            names = (
                given.split(",") if given else [str(index) for index in range(max(self.gpus) + 1)]
            )
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(names[index] for index in self.gpus)
        if self.threads:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        return environment


def make_slots(num_gpus: int, gpus_per_cell: int, jobs: int) -> list[Slot]:
    """Slots over so many GPUs, or where there are none, for so many cells at a time on the CPU."""
    if num_gpus:
        first = range(0, num_gpus - gpus_per_cell + 1, gpus_per_cell)
        return [Slot(tuple(range(start, start + gpus_per_cell))) for start in first]
    if jobs == 1:
        return [Slot()]
    return [Slot(threads=max(1, (os.cpu_count() or 1) // jobs))] * jobs


class InterruptedTableError(Exception):
    """The user or the system stopped the table; the cells under way have saved a checkpoint."""


@dataclass
class _Process:
    cell: Cell
    slot: Slot
    popen: subprocess.Popen
    log: TextIO
    start_iter: int
    started: float = field(default_factory=time.monotonic)


def run_cells(
    cells: Sequence[Cell], slots: Sequence[Slot], console: Console, estimates: Estimates
) -> None:
    """Run every cell that is not finished and can be run, and tell how each ended.

    A cell that fails does not stop the others.

    Raises:
        InterruptedTableError: on SIGINT or SIGTERM, once the cells under way have stopped.
    """
    waiting = []
    for cell in cells:
        record = records.read_record(cell)
        if record.state in (records.FINISHED, records.OBSTRUCTED):
            _tell(console, cell, record)
        else:
            waiting.append(cell)
    if waiting:
        _Pool(waiting, slots, console, estimates).run()


class _Pool:
    def __init__(
        self,
        waiting: list[Cell],
        slots: Sequence[Slot],
        console: Console,
        estimates: Estimates,
    ) -> None:
        self.waiting, self.free, self.console = waiting, list(slots), console
        self.estimates, self.num_slots = estimates, len(slots)
        self.total, self.done = len(waiting), 0
        self.running: list[_Process] = []
        self.signals = 0
        self.printed = float("-inf")

    def run(self) -> None:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            with Live(console=self.console, auto_refresh=False, transient=True) as live:
                while self.running or (self.waiting and not self.signals):
                    self._start_cells()
                    self._end_cells()
                    self._show(live)
                    time.sleep(_POLL_SECONDS)
        finally:
            for process in self.running:
                process.popen.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.signals:
            raise InterruptedTableError

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """The first signal lets the cells save a checkpoint, the second one ends them."""
        self.signals += 1
        for process in self.running:
            process.popen.send_signal(signal.SIGINT if self.signals == 1 else signal.SIGKILL)

    def _start_cells(self) -> None:
        while self.waiting and self.free and not self.signals:
            cell, slot = self.waiting.pop(0), self.free.pop(0)
            cell.log.parent.mkdir(parents=True, exist_ok=True)
            log = cell.log.open("w")
            popen = subprocess.Popen(
                cell.command(max(1, len(slot.gpus))),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=slot.environment(),
                # Of its own, so that Ctrl-C reaches it once, through this process.
                start_new_session=True,
            )
            self.running.append(
                _Process(
                    cell, slot, popen, log, records.iterations_done(cell.folder, cell.max_iter)
                )
            )

    def _end_cells(self) -> None:
        for process in list(self.running):
            code = process.popen.poll()
            if code is None:
                continue
            process.log.close()
            self.running.remove(process)
            self.free.append(process.slot)
            self.done += 1
            if self.signals:
                records.forget_start(process.cell)
            record = records.read_record(process.cell)
            interrupted = self.signals or code == _INTERRUPTED
            if code and not interrupted and record.state != records.FAILED:
                records.write_failure(process.cell, _death(process.cell, code))
                record = records.read_record(process.cell)
            self.estimates.learn(record)
            _tell(self.console, process.cell, record)

    def _show(self, live: Live) -> None:
        now = time.monotonic()
        if not self.running or (
            not self.console.is_terminal and now < self.printed + _PLAIN_INTERVAL_S
        ):
            return
        self.printed = now
        parts = []
        left: list[float | None] = [self.estimates.seconds(cell) for cell in self.waiting]
        for process in self.running:
            iterations = max(
                records.iterations_done(process.cell.folder, process.cell.max_iter),
                process.start_iter,
            )
            parts.append(f"{process.cell.name} {iterations}/{process.cell.max_iter}")
            elapsed = now - process.started
            left.append(self.estimates.left(process.cell, process.start_iter, iterations, elapsed))
        known = [seconds for seconds in left if seconds is not None]
        more = "" if len(known) == len(left) else "at least "
        time_left = f"{more}{in_words(sum(known) / self.num_slots)}" if known else "unknown"
        text = Text(f"{self.done}/{self.total} cells done, {time_left} left; {', '.join(parts)}")
        if self.console.is_terminal:
            live.update(text, refresh=True)
        else:
            self.console.print(text, soft_wrap=True)


def _death(cell: Cell, code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", which the system sends when memory runs out" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"
    return records.last_line(cell.log) or f"the process ended with exit code {code}"


def _tell(console: Console, cell: Cell, record: Any) -> None:
    if record.state == records.FINISHED:
        task = next(iter(record.metrics))
        ap = record.metrics[task]["AP"]
        found = "-" if ap is None else f"{ap:.1f}"
        rest = (
            f"{records.TASKS[task]} AP {found}, {record.seconds_per_iteration or 0:.3f} s/iteration"
        )
    else:
        rest = record.error or f"{record.iterations} of {cell.max_iter} iterations"
    line = Text(f"{cell.name}: {record.state}, {rest}", style=_STYLES.get(record.state, ""))
    console.print(line, soft_wrap=True)


_STYLES = {records.FAILED: "bold red", records.OBSTRUCTED: "yellow"}
