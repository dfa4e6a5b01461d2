"""A table for people and for programs: Markdown, HTML with its pictures inside, CSV, JSON."""

import base64
import csv
import html
import io
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..data.files import write_atomically
from . import plots
from .estimate import in_words
from .records import FAILED, FINISHED, OBSTRUCTED, TASKS, Record
from .summary import METRICS, Row, Statistic, summarise

_MOST_CLASSES = 20
_GIB = 2**30
_PUBLISHED = (
    "What Yavuz et al. (ECCV 2024) report, beside what was measured here. Their times are of 4 "
    "A100 with a batch of 16: only their ratios compare with other machines."
)


@dataclass(frozen=True)
class Section:
    """A titled table of strings with a sentence or two on how to read it."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def write_report(records: Sequence[Record], output: Path) -> list[Section]:
    """Write table.md, .html, .csv and .json and the pictures into a folder."""
    rows = summarise(records)
    sections = make_sections(records, rows)
    pictures = plots.draw(records, rows, output)
    title, paragraphs = _introduction(records)
    write_atomically(output / "table.md", _markdown(title, paragraphs, sections, pictures))
    write_atomically(output / "table.html", _html(title, paragraphs, sections, pictures))
    write_atomically(output / "table.csv", _csv(records))
    content = {
        "rows": [row.as_dict() for row in rows],
        "published": [vars(row.published) for row in rows if row.published],
        "cells": [record.as_dict() for record in records],
    }
    write_atomically(output / "table.json", json.dumps(content, indent=1) + "\n")
    return sections


def print_report(records: Sequence[Record], console: Console) -> None:
    """Print the short form: accuracy and cost of every row, and the cells that failed."""
    rows = summarise(records)
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("detector", lambda row: row.config),
        ("loss", lambda row: row.loss),
    ]
    for task, word in _tasks(rows).items():
        columns.append((f"{word} AP", lambda row, task=task: _number(row.metric(task, "AP"), 1)))
    columns += [
        ("s / iteration", lambda row: _cost(row, "seconds_per_iteration", 3)),
        ("speed-up", lambda row: _ratio(row.speed_up())),
        ("classification ms", lambda row: _cost(row, "classification_loss_ms", 1)),
        ("share", lambda row: _share(row)),
    ]
    lines = [tuple(name for name, _ in columns)]
    lines += [tuple(of_row(row) for _, of_row in columns) for row in rows]
    print_aligned(lines, right=set(range(2, len(columns))), console=console)
    for record in records:
        if record.state in (FAILED, OBSTRUCTED):
            line = f"{record.name}: {record.state}: {record.error}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def print_aligned(
    lines: Sequence[tuple[str, ...]], *, right: Collection[int], console: Console
) -> None:
    """Print rows of one length in columns, header first, never folded or cut.

    Args:
        right: the columns that are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        cells = [
            text.rjust(width) if place in right else text.ljust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        style = "bold" if number == 0 else ""
        console.print(Text("  ".join(cells).rstrip(), style=style), soft_wrap=True)


def make_sections(records: Sequence[Record], rows: Sequence[Row]) -> list[Section]:
    """The tables of a report."""
    sections = [_accuracy(rows, task, word) for task, word in _tasks(rows).items()]
    sections += [_costs(rows)] if rows else []
    sections += _published(rows)
    sections += [_per_class(rows, task, word) for task, word in _tasks(rows).items()]
    sections += [_cells(records)]
    return [section for section in sections if section.rows]


def _tasks(rows: Sequence[Row]) -> dict[str, str]:
    return {t: word for t, word in TASKS.items() if any(row.metric(t, "AP") for row in rows)}


def _accuracy(rows: Sequence[Row], task: str, word: str) -> Section:
    return Section(
        f"{word.capitalize()} AP",
        f"COCO {word} AP in percent on the validation split; with several seeds mean ± sample "
        "standard deviation. The last columns are differences in AP, seed by seed: from the same "
        "objective without buckets, and from the detector's own score-based loss.",
        ("detector", "loss", "seeds", *METRICS, "vs unbucketed", "vs score"),
        [
            (
                row.config,
                row.loss,
                str(len(row.seeds)),
                *[_number(row.metric(task, name), 1) for name in METRICS],
                _number(row.difference(row.unbucketed, task), 1, sign=True),
                _number(row.difference(row.score, task), 1, sign=True),
            )
            for row in rows
            if row.metric(task, "AP")
        ],
    )


def _costs(rows: Sequence[Row]) -> Section:
    return Section(
        "Time and memory",
        "Seconds of an iteration: median after warm-up, reading pictures included. Speed-up: "
        "against the same objective without buckets. Classification: milliseconds in the "
        "classification losses of all heads of an iteration, forward and backward, timed on their "
        "own; share: of the iteration. All losses: with the box losses (mask losses are not in "
        "it). Peak memory: of tensors on a GPU; of the whole process on a CPU.",
        (
            "detector", "loss", "s / iteration", "speed-up", "classification ms", "share",
            "all losses ms", "images / s", "peak memory GiB",
        ),
        [
            (
                row.config,
                row.loss,
                _cost(row, "seconds_per_iteration", 3),
                _ratio(row.speed_up()),
                _cost(row, "classification_loss_ms", 1),
                _share(row),
                _cost(row, "loss_ms", 1),
                _cost(row, "images_per_second", 1),
                _number(row.statistic(_gibibytes), 2),
            )
            for row in rows
        ],
    )  # fmt: skip


def _published(rows: Sequence[Row]) -> list[Section]:
    there = [row for row in rows if row.published and _same_data(row)]
    return [
        Section(
            "Published numbers",
            _PUBLISHED,
            (
                "detector", "loss", "AP here", "AP published", "s / iteration here",
                "s / iteration published", "speed-up here", "speed-up published",
            ),
            [
                (
                    row.config,
                    row.loss,
                    _number(row.metric(row.published.metric, "AP"), 1),
                    _plain(row.published.ap, 1),
                    _cost(row, "seconds_per_iteration", 3),
                    _plain(row.published.seconds_per_iteration, 2),
                    _ratio(row.speed_up()),
                    _ratio(row.published.speed_up),
                )
                for row in there
            ],
        )
    ]  # fmt: skip


def _same_data(row: Row) -> bool:
    """Whether a row was trained on the data of the published one, or was only timed."""
    names = {cell.dataset for cell in row.cells}
    own = row.published.dataset.lower().split()[0]
    return all(name is None or name.lower().startswith(own) for name in names)


def _per_class(rows: Sequence[Row], task: str, word: str) -> Section:
    classes = list(
        dict.fromkeys(
            name
            for row in rows
            for cell in row.cells
            for name in cell.metrics.get(task, {}).get("per_class", {})
        )
    )
    shown = rows if 1 < len(classes) <= _MOST_CLASSES else ()

    def ap_of(row: Row, name: str) -> str:
        per_class = row.statistic(lambda cell: cell.metrics[task]["per_class"].get(name))
        return _number(per_class, 1)

    return Section(
        f"{word.capitalize()} AP by class",
        "",
        ("detector", "loss", *classes),
        [
            (row.config, row.loss, *[ap_of(row, name) for name in classes])
            for row in shown
            if row.metric(task, "AP")
        ],
    )


def _cells(records: Sequence[Record]) -> Section:
    return Section(
        "Runs",
        "Every cell has its own folder, or file where it was only timed, in cells/.",
        ("run", "state", "iterations", "AP", "s / iteration", "took", "config", "commit", "error"),
        [
            (
                record.name,
                record.state,
                f"{record.iterations}/{record.max_iter}" if record.max_iter else "-",
                " ".join(_plain(m["AP"], 1) for m in record.metrics.values()) or "-",
                _plain(record.seconds_per_iteration, 3),
                in_words(record.wall_seconds) if record.wall_seconds else "-",
                record.run.get("config_hash") or "-",
                (record.run.get("git_commit") or "-")[:9],
                record.error or "",
            )
            for record in records
        ],
    )


def _introduction(records: Sequence[Record]) -> tuple[str, list[str]]:
    ran = [record for record in records if record.run]
    datasets = list(dict.fromkeys(str(record.dataset or "each config's own") for record in records))
    finished = sum(record.state == FINISHED for record in records)
    paragraphs = [
        f"{finished} of {len(records)} cells finished, seeds "
        f"{', '.join(map(str, sorted({record.seed for record in records})))}; written on "
        f"{datetime.now(UTC):%Y-%m-%d}."
    ]
    places = dict.fromkeys(_place(record) for record in ran)
    paragraphs += ["Measured on " + "; ".join(places) + "."] if places else []
    pictures = dict.fromkeys(r.run["pictures"] for r in ran if r.run.get("pictures"))
    if pictures:
        title = "What ranking losses cost in a training step"
        paragraphs += ["Timed, not trained: " + "; ".join(pictures) + "."]
        return title, paragraphs
    return f"Ranking losses on {', '.join(datasets)}", paragraphs


def _place(record: Record) -> str:
    run = record.run
    versions = run.get("versions") or {}
    device = str(run.get("device"))
    room = (
        f"{run.get('processes')} GPU"
        if device.startswith("cuda")
        else f"{run.get('threads')} threads"
    )
    software = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "bucketrank") if versions.get(name)
    )
    return f"{run.get('device_name') or device} ({room}), {software}"


def _markdown(
    title: str,
    paragraphs: Sequence[str],
    sections: Sequence[Section],
    pictures: Sequence[plots.Picture],
) -> str:
    lines = [f"# {title}", ""]
    for paragraph in paragraphs:
        lines += [paragraph, ""]
    for picture in pictures:
        lines += [f"![{picture.caption}]({picture.path.name})", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        lines += [section.note, ""] if section.note else []
        header, *rows = [
            "| " + " | ".join(map(_in_cell, row)) + " |"
            for row in (section.header, *_grouped(section))
        ]
        lines += [header, "|" + "---|" * len(section.header), *rows, ""]
    return "\n".join(lines)


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _grouped(section: Section) -> list[tuple[str, ...]]:
    """The rows with the detector named once."""
    if section.header[0] != "detector":
        return section.rows
    rows, before = [], None
    for first, *rest in section.rows:
        rows.append(("" if first == before else first, *rest))
        before = first
    return rows


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #444; }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left; }
tr.first td { border-top: 2px solid #999; }
img { max-width: 100%; }
"""


def _html(
    title: str,
    paragraphs: Sequence[str],
    sections: Sequence[Section],
    pictures: Sequence[plots.Picture],
) -> str:
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>"
    ]
    parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs]
    for picture in pictures:
        data = base64.b64encode(picture.path.read_bytes()).decode()
        caption = html.escape(picture.caption, quote=True)
        parts.append(f"<p><img alt='{caption}' src='data:image/png;base64,{data}'></p>")
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.note)}</p>")
        parts.append("<table><tr>" + _html_row("th", section.header) + "</tr>")
        for row in _grouped(section):
            first = " class='first'" if section.header[0] == "detector" and row[0] else ""
            parts.append(f"<tr{first}>" + _html_row("td", row) + "</tr>")
        parts.append("</table>")
    return "\n".join([*parts, "</html>\n"])


def _html_row(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


def _csv(records: Sequence[Record]) -> str:
    rows = [_flat(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _flat(record: Record) -> dict[str, object]:
    """A cell as one line of a CSV."""
    flat: dict[str, object] = {}
    for name, value in record.as_dict().items():
        if name == "metrics":
            for task, metrics in value.items():
                flat |= {f"{task}_{key}": v for key, v in metrics.items() if key != "per_class"}
                flat |= {f"{task}_AP[{key}]": v for key, v in metrics["per_class"].items()}
        elif name == "final_losses":
            flat |= {f"final_{key}": loss for key, loss in value.items()}
        elif name == "run":
            flat |= {key: v for key, v in value.items() if key != "versions"}
            flat |= {f"{key}_version": v for key, v in (value.get("versions") or {}).items()}
        elif name != "curves":
            flat[name] = value
    return flat


def _number(statistic: Statistic | None, decimals: int, sign: bool = False) -> str:
    if statistic is None:
        return "-"
    mean = f"{statistic.mean:{'+' if sign else ''}.{decimals}f}"
    return mean if statistic.std is None else f"{mean} ± {statistic.std:.{decimals}f}"


def _cost(row: Row, name: str, decimals: int) -> str:
    return _number(row.statistic(lambda cell: getattr(cell, name)), decimals)


def _gibibytes(cell: Record) -> float | None:
    return None if cell.peak_memory_bytes is None else cell.peak_memory_bytes / _GIB


def _share(row: Row) -> str:
    share = row.statistic(lambda cell: cell.classification_loss_share)
    return "-" if share is None else f"{100 * share.mean:.0f} %"


def _plain(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"
