"""What is stored of a table: its list of cells, and of each cell what its run has left.

A cell's record is that of its run (see `engine.run_records`) with what the cell is, its state and,
where it failed or cannot be run, one sentence under "error". It is a line of table.csv.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from ..data.files import write_atomically
from ..engine.evaluation import write_results
from ..engine.run_folder import RECORD, is_run, read_json
from ..engine.run_records import Record, read_run
from ..errors import BucketRankError
from .cells import Cell

GRID = "grid.json"
FINISHED, UNFINISHED, FAILED = "finished", "unfinished", "failed"
PENDING, OBSTRUCTED = "not started", "cannot be run"
_STATES = {"finished": FINISHED, "failed": FAILED, "diverged": FAILED}
_CELL_KEYS = (
    "name", "config", "loss", "variant", "seed", "dataset", "max_iter", "images_per_ranking",
)  # fmt: skip


def write_grid(output: Path, cells: list[Cell]) -> None:
    """Remember the cells of a table; those of earlier calls stay in it.

    Raises:
        BucketRankError: a run of an earlier call has another config than its cell has now.
    """
    for cell in cells:
        run = None if cell.obstacle else read_run(cell.folder, cell.max_iter)
        if run and run["config_hash"] != cell.config_hash:
            raise BucketRankError(
                f"The run in {cell.folder} had another config (its config.yaml shows it) or number "
                "of GPUs; give the same options as then, choose another --output, or move that "
                "folder away."
            )
    add_to_grid(output, [_entry(cell) for cell in cells])


def add_to_grid(output: Path, entries: Sequence[Record]) -> None:
    """Remember entries: what a record says of a cell itself, "obstacle", and "timing" of one that
    is not trained but timed. An older one of the same name is replaced."""
    listed = {entry["name"]: entry for entry in [*_read_grid(output), *entries]}
    write_atomically(output / GRID, json.dumps(list(listed.values()), indent=1) + "\n")


def _entry(cell: Cell) -> Record:
    return {key: getattr(cell, key) for key in (*_CELL_KEYS, "obstacle")}


def _read_grid(output: Path) -> list[Record]:
    path = output / GRID
    return json.loads(path.read_text()) if path.is_file() else []


def timing_file(output: Path, name: str) -> Path:
    """Where the record of a timed cell is."""
    return output / "cells" / f"{name}.json"


def write_failure(cell: Cell, error: str) -> None:
    """Note why a cell's process ended where its run could not do so itself."""
    path = cell.folder / RECORD
    if is_run(cell.folder):
        write_results(path, {**read_json(path), "state": "failed", "error": error})
    elif last_line(cell.log) != error:
        with cell.log.open("a") as log:
            log.write(f"{error}\n")


def read_records(output: Path) -> list[Record]:
    """Every cell of the table in `output`, from its files alone.

    Raises:
        BucketRankError: there is no table.
    """
    entries = _read_grid(output)
    if not entries:
        raise BucketRankError(
            f"There is no table in {output}: it has no {GRID}. `bucketrank table` starts one."
        )
    return [_read(entry, output / "cells" / entry["name"]) for entry in entries]


def read_record(cell: Cell) -> Record:
    """The state and results of one cell of a plan."""
    return _read(_entry(cell), cell.folder)


def is_to_do(record: Record) -> bool:
    """Whether the cell of a record is still to be run, and can be."""
    return record["state"] not in (FINISHED, OBSTRUCTED)


def _read(entry: Record, folder: Path) -> Record:
    record = {key: entry.get(key) for key in _CELL_KEYS}
    record["variant"] = record["variant"] or ""  # not in older tables
    record |= {"state": PENDING, "iterations": 0, "error": entry.get("obstacle"), "curves": {}}
    if record["error"]:
        return {**record, "state": OBSTRUCTED}
    if entry.get("timing"):
        timed = timing_file(folder.parents[1], entry["name"])
        return {**record, **json.loads(timed.read_text())} if timed.is_file() else record
    run = read_run(folder, entry["max_iter"])
    if run is not None:
        return {**record, **run, "state": _STATES.get(run["state"], UNFINISHED)}
    error = last_line(folder.with_name(f"{folder.name}.log"))
    return {**record, "state": FAILED, "error": error} if error else record


def last_line(path: Path) -> str | None:
    """The last line of a text file that says something; None where there is none."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else None
