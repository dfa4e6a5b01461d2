"""The whole of `bucketrank table`: plan, run, job list, report."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from ..console import say
from ..data.files import write_atomically
from ..errors import BucketRankError
from ..published import IMAGES_PER_RANKING, published
from . import cell_records as records
from .cell_processes import CellRunner, Place, make_places, seconds_left, seconds_per_iteration
from .cells import Cell
from .output import Table, in_words
from .report import print_report, write_report

_PAPER_GPUS = 4


def choose_places(
    gpus: int | None,
    processes_per_cell: int | None,
    jobs: int,
    device: str | None,
    *,
    paper: bool = False,
    here: bool = True,
) -> list[Place]:
    """The places for cells that a user means.

    Args:
        gpus: None: all there are; 0: none.
        processes_per_cell: one a GPU where there are GPUs. None: 1, or with `paper` its 4, else 2
            or 1 of fewer; on the CPU 1.
        here: whether the cells run on this machine; what is planned for another one may have GPUs
            that this one lacks.

    Raises:
        BucketRankError: there are not so many, or a cell needs more than there are.
    """
    there = torch.cuda.device_count()
    wanted = processes_per_cell or (_PAPER_GPUS if paper else 1)
    if not here and wanted > 1:
        there = max(there, wanted)
    on_gpu = device is None or device.startswith("cuda")
    count = (there if on_gpu else 0) if gpus is None else gpus
    if here and count > there:
        raise BucketRankError(f"--gpus is {count}, but this machine has {there}.")
    if count and processes_per_cell and processes_per_cell > count:
        raise BucketRankError(
            f"--processes-per-cell is {processes_per_cell}, but there are {count} GPUs; "
            "--gpus 0 trains on the CPU."
        )
    while count and wanted > count:
        wanted //= 2
    return make_places(count, wanted if count else processes_per_cell or 1, jobs)


def run(
    cells: list[Cell], output: Path, places: Sequence[Place], console: Console
) -> tuple[bool, int]:
    """Run the cells of a plan that are not finished, then report on all that is in the folder.

    Returns:
        Whether the user stopped it, and how many cells failed.

    Raises:
        BucketRankError: no cell can be run here, or see :func:`cell_records.write_grid`.
    """
    _remember(cells, output)
    done = sum(records.read_record(cell)["state"] == records.FINISHED for cell in cells)
    say(console, f"{len(cells)} cells, {done} of them finished before, in {output}")
    _warn_of_other_rankings(cells, console)
    ended = CellRunner(cells, places, console).run()
    report(output, console)
    states = [records.read_record(cell)["state"] for cell in cells]
    return not ended, states.count(records.FAILED)


def _remember(cells: list[Cell], output: Path) -> None:
    if all(cell.obstacle for cell in cells):
        raise BucketRankError(f"No cell of this table can be run: {cells[0].obstacle}")
    records.write_grid(output, cells)


def show_plan(cells: list[Cell], output: Path, places: Sequence[Place], console: Console) -> None:
    """Print the cells of a table, their state and how long they will take."""
    known = [records.read_record(cell) for cell in cells]
    header = ["cell", "state", "iterations", "images / ranking", "estimated", "by"]
    rows, times = [], []
    for cell, record in zip(cells, known, strict=True):
        state, time, source = record["state"], "-", ""
        if state != records.FINISHED and cell.max_iter:
            times.append(seconds_left(record, known))
            pace = seconds_per_iteration(cell.config, cell.loss, known)
            time, source = (in_words(times[-1]), pace[1]) if pace else ("unknown", "")
        numbers = str(cell.max_iter or "-"), str(cell.images_per_ranking or "-")
        rows.append([cell.name, state, *numbers, time, source])
    Table(header, rows).print(console)
    for obstacle in dict.fromkeys(cell.obstacle for cell in cells if cell.obstacle):
        say(console, f"Cannot be run: {obstacle}")
    _warn_of_other_rankings(cells, console)
    seconds = sum(time for time in times if time is not None) / len(places)
    total = [f"about {in_words(seconds)}"] if seconds else []
    if unknown := times.count(None):
        total.append(f"{unknown} cells that take as long as the first ones will show")
    each = places[0].processes
    on = f" of {each} processes each" if each > 1 else ""
    where = f"{len(cells)} cells into {output}, {len(places)} at a time{on}"
    say(console, f"{where}: {' and '.join(total) or 'nothing is left to run'}")


def _warn_of_other_rankings(cells: Sequence[Cell], console: Console) -> None:
    of_paper = [c for c in cells if c.dataset is None and published(c.config, c.loss)]
    numbers = {cell.images_per_ranking for cell in of_paper} - {None, IMAGES_PER_RANKING}
    if numbers:
        here = ", ".join(map(str, sorted(numbers)))
        say(
            console,
            f"The paper's rankings span {IMAGES_PER_RANKING} images, here {here}: these cells "
            "optimise another objective and are not compared with it. --processes-per-cell "
            f"{_PAPER_GPUS} gives the paper's.",
        )


def write_jobs(cells: list[Cell], output: Path, path: Path) -> int:
    """Write the commands of all cells that are not finished, one a line; returns how many.

    Raises:
        BucketRankError: the file is there already, or see :func:`run`.
    """
    if path.exists():
        raise BucketRankError(f"There is a file at {path} already; choose another for the jobs.")
    _remember(cells, output)
    (output / "cells").mkdir(parents=True, exist_ok=True)
    todo = [cell for cell in cells if records.is_to_do(records.read_record(cell))]
    write_atomically(path, "".join(f"{cell.job()}\n" for cell in todo))
    return len(todo)


def report(output: Path, console: Console) -> None:
    """Write table.md, .html, .csv, .json and pictures of what is in a folder, and print the table.

    Raises:
        BucketRankError: there is no table.
    """
    stored = records.read_records(output)
    write_report(stored, output)
    print_report(stored, console)
    files = "table.html (pictures inside), table.md, table.csv, table.json"
    say(console, f"The report is in {output}: {files}")
