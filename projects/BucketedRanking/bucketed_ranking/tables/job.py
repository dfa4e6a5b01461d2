"""The whole of `bucketrank table`: plan, run, job list, report."""

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from ..data.files import write_atomically
from ..errors import BucketRankError
from . import records, timing
from .estimate import estimate, in_words
from .grid import Cell, Request, plan
from .report import print_aligned, print_report, write_report
from .runner import InterruptedTableError, Slot, make_slots, run_cells


@dataclass(frozen=True)
class Room:
    """Where cells run: see :func:`choose_room`."""

    slots: tuple[Slot, ...]

    @property
    def gpus_per_cell(self) -> int:
        return max(1, len(self.slots[0].gpus))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds by commas: "1,2,3".

    Raises:
        BucketRankError: one is not a whole number from 0 on, or there is none.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise BucketRankError(
            f"--seeds takes whole numbers by commas, such as 1,2,3, not {text!r}."
        )
    return tuple(dict.fromkeys(map(int, words)))


def choose_room(
    gpus: int | None, gpus_per_cell: int, jobs: int, device: str | None, *, here: bool = True
) -> Room:
    """The places for cells that a user means.

    Args:
        gpus: None: all there are; 0: none.
        here: whether the cells run on this machine; what is planned for another one may have GPUs
            that this one lacks.

    Raises:
        BucketRankError: there are not so many, or a cell needs more than there are.
    """
    there = torch.cuda.device_count()
    if not here and gpus_per_cell > 1:
        there = max(there, gpus_per_cell)
    on_gpu = device is None or device.startswith("cuda")
    count = (there if on_gpu else 0) if gpus is None else gpus
    if here and count > there:
        raise BucketRankError(f"--gpus is {count}, but this machine has {there}.")
    if count and gpus_per_cell > count:
        raise BucketRankError(f"--gpus-per-cell is {gpus_per_cell}, but there are {count} GPUs.")
    return Room(tuple(make_slots(count, gpus_per_cell, jobs)))


@dataclass(frozen=True)
class Outcome:
    """How a table ended: whether the user stopped it, and how many of its cells failed."""

    stopped: bool
    failed: int


def run(request: Request, room: Room, console: Console) -> Outcome:
    """Run what is not finished, then report on all that is in the folder.

    Raises:
        BucketRankError: see `grid.plan` and `records.write_grid`; or no cell can be run here.
    """
    cells = _runnable(request)
    done = sum(records.read_record(cell).state == records.FINISHED for cell in cells)
    console.print(
        f"{len(cells)} cells, {done} of them finished before, in {request.output}",
        soft_wrap=True,
        highlight=False,
    )
    stopped = False
    try:
        run_cells(cells, room.slots, console, estimate(cells, room.gpus_per_cell, console))
    except InterruptedTableError:
        stopped = True
    report(request.output, console)
    states = [records.read_record(cell).state for cell in cells]
    return Outcome(stopped, states.count(records.FAILED))


def _runnable(request: Request) -> list[Cell]:
    """The cells of a plan, remembered in its folder."""
    cells = plan(request)
    if all(cell.obstacle for cell in cells):
        raise BucketRankError(f"No cell of this table can be run: {cells[0].obstacle}")
    records.write_grid(request.output, cells)
    return cells


def show_plan(request: Request, room: Room, console: Console) -> None:
    """Print the cells of a table, their state and how long they will take."""
    cells = plan(request)
    estimates = estimate(cells, room.gpus_per_cell, console)
    lines = [("cell", "state", "iterations", "estimated", "by")]
    total, unknown = 0.0, 0
    for cell in cells:
        state = records.read_record(cell).state
        known = estimates.per_iteration(cell.config, cell.loss)
        seconds = estimates.seconds(cell)
        row = (cell.name, state, str(cell.max_iter or "-"))
        if state == records.FINISHED or not cell.max_iter:
            lines.append((*row, "-", ""))
        elif known is None or seconds is None:
            unknown += 1
            lines.append((*row, "unknown", ""))
        else:
            total += seconds
            lines.append((*row, in_words(seconds), known[1]))
    print_aligned(lines, right={2, 3}, console=console)
    for obstacle in dict.fromkeys(cell.obstacle for cell in cells if cell.obstacle):
        console.print(f"Cannot be run: {obstacle}", soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{len(cells)} cells into {request.output}, {len(room.slots)} at a time: "
        f"about {in_words(total / len(room.slots))}"
        + (f" and {unknown} cells of unknown length" if unknown else ""),
        soft_wrap=True,
        highlight=False,
    )


def write_jobs(request: Request, room: Room, path: Path) -> int:
    """Write the commands of all cells that are not finished, one a line; returns how many.

    Raises:
        BucketRankError: the file is there already.
    """
    if path.exists():
        raise BucketRankError(f"There is a file at {path} already; choose another for the jobs.")
    cells = _runnable(request)
    (request.output / "cells").mkdir(parents=True, exist_ok=True)
    states = {cell.name: records.read_record(cell).state for cell in cells}
    todo = [c for c in cells if states[c.name] not in (records.FINISHED, records.OBSTRUCTED)]
    write_atomically(path, "".join(f"{cell.job(room.gpus_per_cell)}\n" for cell in todo))
    return len(todo)


def run_timing(request: timing.TimingRequest, console: Console) -> None:
    """Time training steps, then report; see :mod:`.timing`."""
    timing.time_grid(request, console)
    report(request.output, console)


def report(output: Path, console: Console) -> None:
    """Write table.md, .html, .csv, .json and pictures of what is in a folder, and print the table.

    Raises:
        BucketRankError: there is no table.
    """
    stored = records.read_records(output)
    write_report(stored, output)
    print_report(stored, console)
    console.print(
        f"The report is in {output}: table.html (pictures inside), table.md, table.csv, table.json",
        soft_wrap=True,
        highlight=False,
    )
