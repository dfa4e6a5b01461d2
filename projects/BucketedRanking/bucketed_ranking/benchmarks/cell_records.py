"""What is stored of a table: its list of cells, and of each cell what its run has left.

A record is a dict of plain values, a line of table.csv: a cell with its state, costs and, of the
tasks that were evaluated, metrics such as "bbox_AP" and "bbox_AP[class]" in percent. What is not
known is None or absent. "curves" has by task pairs of iteration and AP.
"""

import json
import math
import statistics
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..data.files import write_atomically
from ..engine import runs
from ..engine.evaluation import write_results
from ..errors import BucketRankError
from ..published import TASKS
from .cells import Cell

Record = dict[str, Any]

GRID = "grid.json"
FINISHED, UNFINISHED, FAILED, PENDING, OBSTRUCTED = (
    "finished", "unfinished", "failed", "not started", "cannot be run",
)  # fmt: skip
_ENTRY_KEYS = ("name", "config", "loss", "seed", "dataset", "max_iter", "images_per_ranking")
_RUN_KEYS = (
    "images_per_ranking", "config_hash", "git_commit", "device", "device_name", "threads",
    "processes", "started", "ended",
)  # fmt: skip
_COSTS = {
    "seconds_per_iteration": "seconds_per_iteration",
    "loss_ms": "loss_ms_per_iteration",
    "classification_loss_ms": "classification_loss_ms_per_iteration",
    "images_per_second": "images_per_second",
    "peak_memory_bytes": "peak_memory_bytes",
}
"""Names in results.json; the times of the losses are those of `engine.loss_profiler`."""


def write_grid(output: Path, cells: list[Cell]) -> None:
    """Remember the cells of a table; those of earlier calls stay in it.

    Raises:
        BucketRankError: a run of an earlier call has another config than its cell has now.
    """
    for cell in cells:
        run = _run_of(cell.folder)
        if run and not cell.obstacle and run["config_hash"] != cell.config_hash:
            raise BucketRankError(
                f"The run in {cell.folder} had another config (its config.yaml shows it) or number "
                "of GPUs; give the same options as then, choose another --output, or move that "
                "folder away."
            )
    add_to_grid(output, [_entry(cell) for cell in cells])


def add_to_grid(output: Path, entries: Sequence[Record]) -> None:
    """Remember entries; an older one of the same name is replaced.

    An entry has the keys of a record that do not depend on its run, "obstacle", and "timing": of a
    cell that is not trained but timed.
    """
    listed = {entry["name"]: entry for entry in [*_read_grid(output), *entries]}
    write_atomically(output / GRID, json.dumps(list(listed.values()), indent=1) + "\n")


def _run_of(folder: Path) -> Record | None:
    """The content of run.json; None where there is no run."""
    return runs.read_json(folder / runs.RECORD) if runs.is_run(folder) else None


def _entry(cell: Cell) -> Record:
    return {key: getattr(cell, key) for key in (*_ENTRY_KEYS, "obstacle")}


def _read_grid(output: Path) -> list[Record]:
    path = output / GRID
    return json.loads(path.read_text()) if path.is_file() else []


def timing_file(output: Path, name: str) -> Path:
    """Where the record of a timed cell is."""
    return output / "cells" / f"{name}.json"


def write_failure(cell: Cell, error: str) -> None:
    """Note why a cell's process ended where its run could not do so itself."""
    if run := _run_of(cell.folder):
        write_results(cell.folder / runs.RECORD, {**run, "state": "failed", "error": error})
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


def _read(entry: Record, folder: Path) -> Record:
    record = {key: entry.get(key) for key in _ENTRY_KEYS}
    record |= {"state": PENDING, "iterations": 0, "error": entry.get("obstacle"), "curves": {}}
    if record["error"]:
        return {**record, "state": OBSTRUCTED}
    if entry.get("timing"):
        timed = timing_file(folder.parents[1], entry["name"])
        return {**record, **json.loads(timed.read_text())} if timed.is_file() else record
    run, max_iter = _run_of(folder), entry["max_iter"]
    if run is None:
        error = last_line(folder.with_name(f"{folder.name}.log"))
        return {**record, "state": FAILED, "error": error} if error else record
    metrics = [json.loads(line) for line in _metric_lines(folder)]
    record |= {key: run.get(key) for key in _RUN_KEYS}
    record |= {f"{key}_version": value for key, value in (run.get("versions") or {}).items()}
    record["iterations"] = max(run["iterations"], iterations_done(folder, max_iter))
    record["curves"] = _curves(metrics, max_iter)
    if not runs.is_finished(folder, max_iter) or not (folder / runs.RESULTS).is_file():
        failed = run["state"] in ("failed", "diverged")
        return {**record, "state": FAILED if failed else UNFINISHED, "error": run.get("error")}
    return {**record, "state": FINISHED, **_results(folder, run, metrics)}


def _results(folder: Path, run: Record, metrics: list[Record]) -> Record:
    """What a finished run has measured."""
    results = runs.read_json(folder / runs.RESULTS)
    flat = {name: results[key] for name, key in _COSTS.items()}
    waits = [line["data_time"] for line in metrics if "data_time" in line]
    started, ended = (datetime.fromisoformat(run[key]) for key in ("started", "ended"))
    flat |= {
        "classification_loss_share": share_of(flat),
        "data_seconds_per_iteration": statistics.median(waits) if waits else None,
        "wall_seconds": (ended - started).total_seconds(),
    }
    for task in TASKS:
        values = dict(results.get(task, {}))
        per_class = values.pop("per_class", {})
        flat |= {f"{task}_{key}": value for key, value in values.items()}
        flat |= {f"{task}_AP[{name}]": value for name, value in per_class.items()}
    return flat | {f"final_{key}": value for key, value in results["final_losses"].items()}


def share_of(costs: Record) -> float | None:
    """The classification loss' part of an iteration's time, in 0..1; None: not measured."""
    loss_ms, seconds = costs["classification_loss_ms"], costs["seconds_per_iteration"]
    return loss_ms / 1000 / seconds if loss_ms and seconds else None


def iterations_done(folder: Path, max_iter: int) -> int:
    """How far the run in a folder is, by its metrics."""
    lines = _metric_lines(folder)
    # Detectron2 counts from 0, but gives the last evaluation the iteration after.
    return min(json.loads(lines[-1])["iteration"] + 1, max_iter) if lines else 0


def _curves(metrics: list[Record], max_iter: int) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, dict[int, float]] = {}
    for line in metrics:
        for task in TASKS:
            ap = line.get(f"{task}/AP")
            if ap is not None and not math.isnan(ap):
                # As in `iterations_done`.
                curves.setdefault(task, {})[min(line["iteration"] + 1, max_iter)] = ap
    return {task: sorted(points.items()) for task, points in curves.items()}


def _metric_lines(folder: Path) -> list[str]:
    """The lines of a run's metrics.json; a last one that is being written is left out."""
    path = folder / "metrics.json"
    text = path.read_text() if path.is_file() else ""
    return [line for line in text[: text.rfind("\n") + 1].splitlines() if line]


def last_line(path: Path) -> str | None:
    """The last line of a text file that says something; None where there is none."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else None
