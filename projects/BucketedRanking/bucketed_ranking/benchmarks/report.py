"""The report of a table: Markdown, HTML with its pictures inside, CSV, JSON, and the short form."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from ..console import number, say
from ..data.files import write_atomically
from ..engine.evaluation import METRICS
from ..engine.run_records import Record
from ..published import IMAGES_PER_RANKING, TASKS
from .cell_records import FAILED, FINISHED, OBSTRUCTED
from .output import Columns, Table, csv_text, in_words, page
from .plots import draw_table
from .rows import Row, Statistic, finished_rows, make_rows

_MOST_CLASSES = 20
_ACCURACY_NOTE = (
    "COCO {} AP in percent on the validation split; with several seeds mean ± sample standard "
    "deviation. The last columns are differences in AP, seed by seed: from the same objective "
    "without buckets, and from the detector's own score-based loss, both with as many images in a "
    "ranking."
)
_COSTS_NOTE = (
    "Seconds of an iteration: median after warm-up, reading pictures included. Speed-up: against "
    "the same objective without buckets. Classification: milliseconds in the classification losses "
    "of all heads of an iteration, forward and backward, by torch.profiler within some of the "
    "iterations (medians; choosing anchors and making targets are not in it); share: of the "
    "iteration. All losses: with the box losses (mask losses are not in it). Peak memory: of "
    "tensors on a GPU; of the whole process on a CPU, the profiler's included."
)
_PUBLISHED_NOTE = (
    "What Yavuz et al. (ECCV 2024) report, beside what was measured here. Their times are of 4 "
    "A100 with a batch of 16: only their ratios compare with other machines. Rows whose rankings "
    f"span another number of images than the paper's {IMAGES_PER_RANKING} are left out."
)


def write_report(records: Sequence[Record], output: Path) -> None:
    """Write table.md, .html, .csv and .json and the pictures into a folder."""
    rows = finished_rows(records)
    curves = make_rows([record for record in records if record["curves"]])
    pictures = draw_table(rows, curves, output)
    tables = (_tables(rows), _details(records, rows))
    first, last = ([table.markdown() for table in some] for some in tables)
    images = [f"![{caption}]({name})" for name, caption in pictures.items()]
    text = "\n\n".join([*_introduction(records, rows), *first, *images, *last]) + "\n"
    write_atomically(output / "table.md", text)
    write_atomically(output / "table.html", page(text, output))
    flat = [{key: v for key, v in record.items() if key != "curves"} for record in records]
    write_atomically(output / "table.csv", csv_text(flat))
    content = {
        "rows": [row.as_dict() for row in rows],
        "published": [vars(row.published) for row in rows if row.published],
        "cells": list(records),
    }
    write_atomically(output / "table.json", json.dumps(content, indent=1) + "\n")


def print_report(records: Sequence[Record], console: Console) -> None:
    """Print the short form: accuracy and cost of every row, and the cells that failed."""
    rows = finished_rows(records)
    ap = {f"{TASKS[task]} AP": _column(f"{task}_AP", 1) for task in _tasks(rows)}
    costs = {name: _COSTS[name] for name in list(_COSTS)[:4]}
    Table.of(rows, _NAMES | ap | costs).print(console)
    for note in _notes(rows):
        say(console, note)
    for record in records:
        if record["state"] in (FAILED, OBSTRUCTED):
            say(console, f"{record['name']}: {record['state']}: {record['error']}")


def _tasks(rows: Sequence[Row]) -> list[str]:
    return [task for task in TASKS if any(row.statistic(f"{task}_AP") for row in rows)]


def _tables(rows: Sequence[Row]) -> list[Table]:
    """What a reader looks for first: accuracy, costs, the paper's numbers beside ours."""
    tables = []
    for task in _tasks(rows):
        ap = f"{task}_AP"
        columns = _NAMES | {"seeds": lambda row: str(len(row.cells))}
        columns |= {name: _column(f"{task}_{name}", 1) for name in METRICS}
        columns["vs unbucketed"] = _difference("unbucketed", ap)
        columns["vs score"] = _difference("score", ap)
        if any(row.variant for row in rows):
            columns["vs no variant"] = _difference("unchanged", ap)
        known = [row for row in rows if row.statistic(ap)]
        title = f"{TASKS[task].capitalize()} AP"
        tables.append(Table.of(known, columns, title, _ACCURACY_NOTE.format(TASKS[task])))
    tables.append(Table.of(rows, _NAMES | _COSTS, "Time and memory", _COSTS_NOTE))
    compared = [row for row in rows if row.published and row.ranks_as_published]
    published = Table.of(compared, _NAMES | _PUBLISHED, "Published numbers", _PUBLISHED_NOTE)
    return [table for table in [*tables, published] if table.rows]


def _details(records: Sequence[Record], rows: Sequence[Row]) -> list[Table]:
    """AP by class, and every run."""
    tables = []
    for task in _tasks(rows):
        known = [row for row in rows if row.statistic(f"{task}_AP")]
        names = [name for row in known for cell in row.cells for name in cell]
        per_class = [n for n in dict.fromkeys(names) if n.startswith(f"{task}_AP[")]
        columns = {name[len(task) + 4 : -1]: _column(name, 1) for name in per_class}
        if 1 < len(per_class) <= _MOST_CLASSES:
            title = f"{TASKS[task].capitalize()} AP by class"
            tables.append(Table.of(known, _NAMES | columns, title, "Like the AP above."))
    note = "Every cell has its own folder, or file where it was only timed, in cells/."
    return [*tables, Table.of(records, _RUNS, "Runs", note, left=10, grouped=False)]


def _introduction(records: Sequence[Record], rows: Sequence[Row]) -> list[str]:
    """Title and first paragraphs."""
    finished = sum(record["state"] == FINISHED for record in records)
    seeds = ", ".join(map(str, sorted({record["seed"] for record in records})))
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    text = [f"{finished} of {len(records)} cells finished, seeds {seeds}; written on {day}."]
    machines = dict.fromkeys(_machine(record) for record in records if record.get("device"))
    text += ["Measured on " + "; ".join(machines) + "."] if machines else []
    pictures = dict.fromkeys(r["pictures"] for r in records if r.get("pictures"))
    text += ["Timed, not trained: " + "; ".join(pictures) + "."] if pictures else []
    datasets = dict.fromkeys(str(record["dataset"] or "each config's own") for record in records)
    title = "What ranking losses cost in a training step"
    title = title if pictures else f"Ranking losses on {', '.join(datasets)}"
    return [f"# {title}", *text, *_notes(rows)]


def _notes(rows: Sequence[Row]) -> list[str]:
    """What is not compared because its rankings span another number of images."""
    numbers: dict[str, set[int | None]] = {}
    for row in rows:
        numbers.setdefault(row.config, set()).add(row.images_per_ranking)
    notes = []
    if several := [config for config, found in numbers.items() if len(found) > 1]:
        notes.append(
            f"Rows of {', '.join(several)} differ in how many images one ranking spans (batch / "
            "processes), which changes the objective: they are neither averaged nor compared."
        )
    others = [row for row in rows if row.published and not row.ranks_as_published]
    if others:
        found = ", ".join(dict.fromkeys(str(row.images_per_ranking or "unknown") for row in others))
        notes.append(
            f"Not compared with the paper, whose rankings span {IMAGES_PER_RANKING} images, are "
            f"rows whose rankings span another number ({found})."
        )
    return notes


def _machine(record: Record) -> str:
    """Device and versions of a run in words."""
    on_gpu = record["device"].startswith("cuda")
    count = f"{record['processes']} GPU" if on_gpu else f"{record['threads']} threads"
    versions = {name: record.get(f"{name}_version") for name in ("torch", "bucketrank")}
    known = [f"{name} {version}" for name, version in versions.items() if version]
    return ", ".join([f"{record['device_name'] or record['device']} ({count})", *known])


def _text(
    statistic: Statistic | None, decimals: int, sign: str = "", scale: float = 1, unit: str = ""
) -> str:
    if statistic is None:
        return "-"
    mean = f"{scale * statistic.mean:{sign}.{decimals}f}"
    std = "" if statistic.std is None else f" ± {scale * statistic.std:.{decimals}f}"
    return mean + std + unit


def _column(name: str, decimals: int, **how: Any) -> Callable[[Row], str]:
    return lambda row: _text(row.statistic(name), decimals, **how)


def _difference(other: str, name: str) -> Callable[[Row], str]:
    return lambda row: _text(row.difference(getattr(row, other), name), 1, "+")


_NAMES: Columns = {
    "detector": lambda row: row.config,
    "loss": lambda row: f"{row.loss} {row.variant}".rstrip(),
    "images / ranking": lambda row: str(row.images_per_ranking or "unknown"),
}
_COSTS: Columns = {
    "s / iteration": _column("seconds_per_iteration", 3),
    "speed-up": lambda row: number(row.speed_up(), 2, "x"),
    "classification ms": _column("classification_loss_ms", 1),
    "share": _column("classification_loss_share", 0, scale=100, unit=" %"),
    "all losses ms": _column("loss_ms", 1),
    "images / s": _column("images_per_second", 1),
    "peak memory GiB": _column("peak_memory_bytes", 2, scale=1 / 2**30),
}
_PUBLISHED: Columns = {
    "AP here": lambda row: _text(row.statistic(f"{row.published.metric}_AP"), 1),
    "AP published": lambda row: number(row.published.ap, 1),
    "s / iteration here": _COSTS["s / iteration"],
    "s / iteration published": lambda row: number(row.published.seconds_per_iteration, 2),
    "speed-up here": _COSTS["speed-up"],
    "speed-up published": lambda row: number(row.published.speed_up, 2, "x"),
}
_RUNS: Columns = {
    "run": lambda cell: cell["name"],
    "state": lambda cell: cell["state"],
    "iterations": lambda cell: f"{cell['iterations']}/{cell['max_iter'] or '-'}",
    "images / ranking": lambda cell: str(cell["images_per_ranking"] or "-"),
    "AP": lambda cell: " ".join(number(cell[f"{t}_AP"], 1) for t in TASKS if f"{t}_AP" in cell),
    "s / iteration": lambda cell: number(cell.get("seconds_per_iteration"), 3),
    "took": lambda cell: in_words(cell["wall_seconds"]) if cell.get("wall_seconds") else "-",
    "config": lambda cell: cell.get("config_hash") or "-",
    "commit": lambda cell: (cell.get("git_commit") or "-")[:9],
    "error": lambda cell: cell["error"] or "",
}
