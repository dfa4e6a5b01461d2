"""What was measured, as rows, a table, JSON and CSV."""

import csv
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..environment import cpu_name, git_commit, installed_versions
from .cases import Case, GridPoint, case_name
from .memory import METHODS
from .steps import REFERENCES, algorithm_of, loop_of
from .timing import Entry, TimingOptions

_MIB = 2**20


@dataclass(frozen=True)
class CaseResult:
    """A case without its tensors, and what the losses cost on it.

    Attributes:
        regime: of a made-up case; None for a captured one.
        grid_negatives: the number of negatives asked for; None for a captured case.
        negatives: the number there are, those relevant among them in `relevant_negatives`.
    """

    name: str
    regime: str | None
    grid_negatives: int | None
    positives: int
    negatives: int
    relevant_negatives: int
    logits_shape: tuple[int, ...]
    entries: list[Entry]

    @classmethod
    def of(cls, case: Case, entries: list[Entry]) -> "CaseResult":
        point = case.grid_point
        return cls(
            name=case.name,
            regime=point.regime if point else None,
            grid_negatives=point.negatives if point else None,
            positives=case.num_positives,
            negatives=case.num_negatives,
            relevant_negatives=case.relevant_negatives(),
            logits_shape=tuple(case.logits.shape),
            entries=entries,
        )

    @classmethod
    def not_made(cls, point: GridPoint, losses: Sequence[str], reason: str) -> "CaseResult":
        """What stands for a case that is too large to be made."""
        return cls(
            name=case_name(point),
            regime=point.regime,
            grid_negatives=point.negatives,
            positives=point.positives,
            negatives=point.negatives,
            relevant_negatives=0,
            logits_shape=(point.positives + point.negatives, 1),
            entries=[Entry(loss, skipped=reason) for loss in losses],
        )

    @property
    def num_logits(self) -> int:
        rows, columns = self.logits_shape
        return rows * columns

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict a loss: its seconds, ratios and memory; None for what is not known."""
        medians = {e.loss: statistics.median(e.seconds) for e in self.entries if e.seconds}
        return [self._row(entry, medians) for entry in self.entries]

    def _row(self, entry: Entry, medians: dict[str, float]) -> dict[str, Any]:
        median = medians.get(entry.loss)
        low, high = _quartiles(entry.seconds) if entry.seconds else (None, None)
        return {
            "case": self.name,
            "regime": self.regime,
            "positives": self.positives,
            "negatives": self.negatives,
            "relevant_negatives": self.relevant_negatives,
            "loss": entry.loss,
            "algorithm": algorithm_of(entry.loss),
            "median_s": median,
            "quartile_1_s": low,
            "quartile_3_s": high,
            "min_s": min(entry.seconds, default=None),
            "max_s": max(entry.seconds, default=None),
            "repeats": len(entry.seconds),
            "times_faster_than_loop": _ratio(medians.get(loop_of(entry.loss) or ""), median),
            "times_focal": _ratio(median, medians.get("focal")),
            "peak_extra_bytes": entry.peak_bytes,
            "peak_extra_bytes_per_logit": _ratio(entry.peak_bytes, self.num_logits),
            "predicted_s": entry.predicted_seconds,
            "skipped": entry.skipped,
        }


@dataclass(frozen=True)
class Profile:
    """All that one run of the command has measured.

    Attributes:
        machine: see `describe_machine`.
        source: what the cases come from: the grid, or a step of training.
        date: UTC, ISO 8601.
    """

    machine: dict[str, Any]
    source: dict[str, Any]
    timing: TimingOptions
    date: str
    cases: list[CaseResult]

    def as_dict(self) -> dict[str, Any]:
        """The content of profile.json."""
        return {
            "date": self.date,
            "machine": self.machine,
            "source": self.source,
            "timing": asdict(self.timing),
            "methods": describe_methods(self.machine["device"]),
            "cases": [_case_as_dict(case) for case in self.cases],
        }


def _case_as_dict(case: CaseResult) -> dict[str, Any]:
    facts = {name: value for name, value in vars(case).items() if name != "entries"}
    of_case = ("case", "regime", "positives", "negatives", "relevant_negatives")
    entries = []
    for row, entry in zip(case.rows(), case.entries, strict=True):
        own = {name: value for name, value in row.items() if name not in of_case}
        entries.append({**own, "seconds": entry.seconds})
    return {**facts, "entries": entries}


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def describe_machine(device: torch.device, dtype: str) -> dict[str, Any]:
    """The machine and the versions that a measurement belongs to."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
        "system": f"{platform.system()} {platform.release()}",
        "dtype": dtype,
        **installed_versions("fvcore"),
        "git_commit": git_commit(),
    }


def machine_in_words(profile: Profile) -> str:
    """Machine, versions and date in one line."""
    machine = profile.machine
    where = machine["gpu"] or f"{machine['cpu']}, {_threads(machine['threads'])}"
    return (
        f"{where}, {machine['dtype']}, torch {machine['torch']}, "
        f"bucketrank {machine['bucketrank']}, {profile.date[:10]}"
    )


def _threads(count: int) -> str:
    return f"{count} thread" + ("" if count == 1 else "s")


def describe_methods(device: str) -> dict[str, str]:
    """How the numbers were obtained, for those who read them without the code."""
    kind = device.split(":")[0]
    return {
        "time": "forward and backward, wall clock, device synchronised; every repeat calls each "
        "loss once; ratios are ratios of medians",
        "memory": METHODS.get(kind, "not measured on this device")
        + "; the gradient counts, the logits do not; loops: with at most 64 of the positives",
        **REFERENCES,
    }


def now() -> str:
    """The time as it goes into the outputs."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_json(profile: Profile, path: Path) -> None:
    """Everything, each single time included."""
    path.write_text(json.dumps(profile.as_dict(), indent=2) + "\n")


def write_csv(profile: Profile, path: Path) -> None:
    """One line a loss and case, machine, versions and date in each."""
    rows = [
        {**row, "date": profile.date, **profile.machine}
        for case in profile.cases
        for row in case.rows()
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def print_tables(profile: Profile, console: Console) -> None:
    """One table a case, under it what was skipped, and at the end the machine."""
    for case in profile.cases:
        share = case.relevant_negatives / max(1, case.negatives)
        facts = f"logits {list(case.logits_shape)}, {share:.1%} of the negatives relevant"
        console.print(f"\n{escape(case.name)}; {escape(facts)}", soft_wrap=True, highlight=False)
        console.print(_table(case))
        for entry in case.entries:
            if entry.skipped:
                line = f"{entry.loss} skipped: {escape(entry.skipped)}"
                console.print(line, soft_wrap=True, highlight=False)
    console.print(
        "\nms: forward + backward, median; speed-up: over the loop of the same objective; MiB:"
        f" peak extra memory.\n{machine_in_words(profile)}",
        soft_wrap=True,
        highlight=False,
    )


def _table(case: CaseResult) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("loss", no_wrap=True)
    for name in ("ms", "quartiles", "speed-up", "x focal", "MiB", "B/logit"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in case.rows():
        table.add_row(row["loss"], *_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    quartiles = "skipped" if row["skipped"] else "-"
    if row["median_s"] is not None:
        quartiles = f"{_milliseconds(row['quartile_1_s'])} .. {_milliseconds(row['quartile_3_s'])}"
    extra = row["peak_extra_bytes"]
    return [
        _milliseconds(row["median_s"]),
        quartiles,
        _significant(row["times_faster_than_loop"]),
        _significant(row["times_focal"]),
        _significant(None if extra is None else extra / _MIB),
        _significant(row["peak_extra_bytes_per_logit"]),
    ]


def _milliseconds(seconds: float | None) -> str:
    return _significant(None if seconds is None else 1000 * seconds)


def _significant(value: float | None) -> str:
    """Three digits; a dash for what is not known."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
