"""What a run has left in its folder, as one flat record.

A record is a dict of plain values, such as "seconds_per_iteration" and, of the tasks that were
evaluated, "bbox_AP" and "bbox_AP[class]" in percent. What is not known is None or absent. "curves"
has by task pairs of iteration and AP; see :mod:`.loss_profiler` for the times of the losses.
"""

import math
import statistics
from datetime import datetime
from pathlib import Path
from typing import Any

from ..published import TASKS
from .run_folder import RECORD, RESULTS, is_finished, is_run, read_json, read_metrics

Record = dict[str, Any]


def read_run(folder: Path, max_iter: int) -> Record | None:
    """The record of a run that is to take `max_iter` iterations; None where there is no run.

    Its "state" is "finished" only where it has been trained so long and evaluated; otherwise
    "training", "interrupted", "failed" or "diverged".
    """
    if not is_run(folder):
        return None
    run = read_json(folder / RECORD)
    metrics = read_metrics(folder)
    finished = is_finished(folder, max_iter)
    if finished:
        max_iter = run["iterations"]  # fewer where it stopped early
    record = flat_run(run)
    # Detectron2 counts from 0, but gives the last evaluation the iteration after.
    done = min(metrics[-1]["iteration"] + 1, max_iter) if metrics else 0
    record["iterations"] = max(run["iterations"], done)
    record["curves"] = _curves(metrics, max_iter)
    if finished:
        return {**record, "state": "finished", **_results(folder, run, metrics)}
    return {**record, "state": run["state"] if run["state"] != "finished" else "training"}


def flat_run(run: Record) -> Record:
    """The plain values of run.json, and the versions in it."""
    plain = {key: value for key, value in run.items() if not isinstance(value, dict | list)}
    return plain | {f"{name}_version": v for name, v in run.get("versions", {}).items()}


def _results(folder: Path, run: Record, metrics: list[Record]) -> Record:
    """What a finished run has measured."""
    results = read_json(folder / RESULTS)
    costs = ("seconds_per_iteration", "images_per_second", "peak_memory_bytes")
    flat = {name: results[name] for name in costs}
    for name in ("loss_ms", "classification_loss_ms"):
        flat[name] = results[f"{name}_per_iteration"]
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


def _curves(metrics: list[Record], max_iter: int) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, dict[int, float]] = {}
    for line in metrics:
        for task in TASKS:
            ap = line.get(f"{task}/AP")
            if ap is not None and not math.isnan(ap):
                # As in `read_run`.
                curves.setdefault(task, {})[min(line["iteration"] + 1, max_iter)] = ap
    return {task: sorted(points.items()) for task, points in curves.items()}
