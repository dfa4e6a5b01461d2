"""Folders as finished and failed runs leave them, without training anything."""

import json
from pathlib import Path

from bucketed_ranking.benchmarks import cell_records as records

RUN = {
    "state": "finished",
    "config_hash": "0123456789ab",
    "git_commit": "c0ffee",
    "versions": {"torch": "2.15.0", "bucketrank": "0.1.0"},
    "device": "cpu",
    "device_name": "A Processor",
    "threads": 2,
    "processes": 1,
    "images_per_ranking": 8,
    "started": "2026-11-22T10:00:00+00:00",
    "ended": "2026-11-22T10:05:00+00:00",
}


def write_cell(
    output: Path,
    config: str,
    loss: str,
    seed: int,
    *,
    ap: float = 50.0,
    seconds: float = 0.4,
    loss_ms: float = 100.0,
    segm: float | None = None,
    max_iter: int = 100,
    dataset: str | None = "cells",
    variant: str = "",
    **run: object,
) -> str:
    """Write a finished cell, or one that `run` says something else of; returns its name."""
    name = "-".join(filter(None, (config, loss, variant, f"seed{seed}")))
    entry = grid_entry(name, config, loss, max_iter, seed, dataset)
    # As a table from before there were variants, where there is none.
    records.add_to_grid(output, [entry | {"variant": variant} if variant else entry])
    folder = output / "cells" / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("VERSION: 2\n")
    run = {**RUN, "iterations": max_iter, **run}
    (folder / "run.json").write_text(json.dumps(run))
    tasks = {"bbox": ap} if segm is None else {"bbox": ap, "segm": segm}
    lines = [
        {"iteration": iteration, **{f"{task}/AP": value / 2 for task, value in tasks.items()}}
        for iteration in (49,)
    ]
    if run["state"] == "finished":
        lines.append({"iteration": 99, "data_time": 0.02})
        # Detectron2 counts from 0, but gives the last evaluation the iteration after.
        lines.append({"iteration": 100, **{f"{task}/AP": value for task, value in tasks.items()}})
        results = {
            "seconds_per_iteration": seconds,
            "loss_ms_per_iteration": loss_ms,
            "classification_loss_ms_per_iteration": 0.8 * loss_ms,
            "images_per_second": 8 / seconds,
            "peak_memory_bytes": 2**30,
            "final_losses": {"loss_rank": 0.25},
            **{task: _metrics(value) for task, value in tasks.items()},
        }
        (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


def grid_entry(
    name: str, config: str, loss: str, max_iter: int, seed: int = 0, dataset: str | None = None
) -> dict[str, object]:
    return {
        "name": name, "config": config, "loss": loss, "seed": seed, "dataset": dataset,
        "max_iter": max_iter,
    }  # fmt: skip


def _metrics(ap: float) -> dict[str, object]:
    summary = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm"), ap)
    return {**summary, "APl": None, "per_class": {"disc": ap + 1, "ring|x": ap - 1}}
