"""What is stored of a table: its list of cells, and of each cell what its run has left."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ..data.files import write_atomically
from ..engine import runs
from ..engine.evaluation import write_results
from ..errors import BucketRankError
from .grid import Cell

GRID = "grid.json"
TASKS = {"bbox": "box", "segm": "mask"}

FINISHED, UNFINISHED, FAILED, PENDING, OBSTRUCTED = (
    "finished", "unfinished", "failed", "not started", "cannot be run",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """A cell with its state and results; what is not known is None or empty.

    Attributes:
        state: FINISHED, UNFINISHED (under way or interrupted), FAILED, PENDING or OBSTRUCTED.
        error: one sentence, of a failed or obstructed cell.
        metrics: by task: AP, AP50, ..., and AP by class under "per_class"; in percent.
        curves: by task: pairs of iteration and AP.
        loss_ms: of the losses of all heads, forward and backward, in an iteration.
        classification_loss_ms: of their classification losses alone.
        classification_loss_share: of the time of an iteration.
        run: the rest of run.json that tells what ran where: commit, versions, device, ...
    """

    name: str
    config: str
    loss: str
    seed: int
    dataset: str | None
    state: str
    iterations: int = 0
    max_iter: int = 0
    error: str | None = None
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    seconds_per_iteration: float | None = None
    data_seconds_per_iteration: float | None = None
    loss_ms: float | None = None
    classification_loss_ms: float | None = None
    classification_loss_share: float | None = None
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    final_losses: dict[str, float] = field(default_factory=dict)
    wall_seconds: float | None = None
    run: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_RUN_KEYS = (
    "config_hash", "git_commit", "versions", "device", "device_name", "threads", "processes",
    "started", "ended",
)  # fmt: skip


def write_grid(output: Path, cells: list[Cell]) -> None:
    """Remember the cells of a table; those of earlier calls stay in it.

    Raises:
        BucketRankError: a run of an earlier call has another config than its cell has now.
    """
    for cell in cells:
        _check_same_config(cell)
    add_to_grid(output, [_entry(cell) for cell in cells])


def add_to_grid(output: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Remember entries of :func:`grid_entry`; an older one of the same name is replaced."""
    listed = {entry["name"]: entry for entry in [*_read_grid(output), *entries]}
    write_atomically(output / GRID, json.dumps(list(listed.values()), indent=1) + "\n")


def grid_entry(
    name: str,
    config: str,
    loss: str,
    *,
    max_iter: int,
    seed: int = 0,
    dataset: str | None = None,
    obstacle: str | None = None,
    timing: bool = False,
) -> dict[str, Any]:
    """What a table remembers of a cell; with `timing`, of one that is not trained but timed."""
    return dict(locals())


def timing_file(output: Path, name: str) -> Path:
    """Where the record of a timed cell is."""
    return output / "cells" / f"{name}.json"


def _entry(cell: Cell) -> dict[str, Any]:
    return grid_entry(
        cell.name,
        cell.config,
        cell.loss,
        max_iter=cell.max_iter,
        seed=cell.seed,
        dataset=cell.dataset,
        obstacle=cell.obstacle,
    )


def write_failure(cell: Cell, error: str) -> None:
    """Note why a cell's process ended where its run could not do so itself."""
    if runs.is_run(cell.folder):
        record = runs.read_json(cell.folder / runs.RECORD)
        record |= {"state": "failed", "error": error}
        write_results(cell.folder / runs.RECORD, record)
    elif last_line(cell.log) != error:
        with cell.log.open("a") as log:
            log.write(f"{error}\n")


def forget_start(cell: Cell) -> None:
    """Remove the log of a cell that was stopped before its run had begun."""
    if not runs.is_run(cell.folder):
        cell.log.unlink(missing_ok=True)


def _check_same_config(cell: Cell) -> None:
    if cell.obstacle or not runs.is_run(cell.folder):
        return
    if runs.read_json(cell.folder / runs.RECORD)["config_hash"] != cell.config_hash:
        raise BucketRankError(
            f"The run in {cell.folder} had another config (its config.yaml shows it); give the "
            "same options as then, choose another --output, or move that folder away."
        )


def _read_grid(output: Path) -> list[dict[str, Any]]:
    path = output / GRID
    return json.loads(path.read_text()) if path.is_file() else []


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


def _read(entry: dict[str, Any], folder: Path) -> Record:
    known = {key: entry[key] for key in ("name", "config", "loss", "seed", "dataset", "max_iter")}
    if entry["obstacle"]:
        return Record(**known, state=OBSTRUCTED, error=entry["obstacle"])
    if entry["timing"]:
        timed = timing_file(folder.parents[1], entry["name"])
        return Record(
            **json.loads(timed.read_text()) if timed.is_file() else known | {"state": PENDING}
        )
    if not runs.is_run(folder):
        error = last_line(folder.with_name(f"{folder.name}.log"))
        return Record(**known, state=FAILED if error else PENDING, error=error)
    run = runs.read_json(folder / runs.RECORD)
    metrics = [json.loads(line) for line in _metric_lines(folder)]
    known |= {
        "iterations": max(run["iterations"], iterations_done(folder, entry["max_iter"])),
        "curves": _curves(metrics, entry["max_iter"]),
        "run": {key: run.get(key) for key in _RUN_KEYS},
    }
    if not runs.is_finished(folder, entry["max_iter"]) or not (folder / runs.RESULTS).is_file():
        failed = run["state"] in ("failed", "diverged")
        return Record(**known, state=FAILED if failed else UNFINISHED, error=run.get("error"))
    results = runs.read_json(folder / runs.RESULTS)
    waits = [line["data_time"] for line in metrics if "data_time" in line]
    seconds = results["seconds_per_iteration"]
    # Runs from before it was measured do not have it.
    classification_ms = results.get("classification_loss_ms_per_iteration")
    return Record(
        **known,
        state=FINISHED,
        metrics={task: results[task] for task in TASKS if task in results},
        seconds_per_iteration=seconds,
        data_seconds_per_iteration=statistics.median(waits) if waits else None,
        loss_ms=results["loss_ms_per_iteration"],
        classification_loss_ms=classification_ms,
        classification_loss_share=share_of(classification_ms, seconds),
        images_per_second=results["images_per_second"],
        peak_memory_bytes=results["peak_memory_bytes"],
        final_losses=results["final_losses"],
        wall_seconds=_between(run["started"], run["ended"]),
    )


def iterations_done(folder: Path, max_iter: int) -> int:
    """How far the run in a folder is, by its metrics."""
    lines = _metric_lines(folder)
    # Detectron2 counts from 0, but gives the last evaluation the iteration after.
    return min(json.loads(lines[-1])["iteration"] + 1, max_iter) if lines else 0


def _curves(metrics: list[dict[str, Any]], max_iter: int) -> dict[str, list[tuple[int, float]]]:
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
    if not path.is_file():
        return []
    text = path.read_text()
    return [line for line in text[: text.rfind("\n") + 1].splitlines() if line]


def last_line(path: Path) -> str | None:
    """The last line of a text file that says something; None where there is none."""
    if not path.is_file():
        return None
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    return lines[-1] if lines else None


def share_of(milliseconds: float | None, seconds: float | None) -> float | None:
    """The part of an iteration's time, in 0..1; None where either was not measured."""
    return milliseconds / 1000 / seconds if milliseconds and seconds else None


def _between(started: str, ended: str | None) -> float | None:
    if ended is None:
        return None
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
