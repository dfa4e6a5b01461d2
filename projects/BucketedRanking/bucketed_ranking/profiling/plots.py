"""A profile as one picture: curves over a grid, dots for single cases."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..loss_styles import LABELS, style_of
from ..losses import LOSS_NAMES
from .report import CaseResult, Profile, machine_in_words

# Width of line and marker: what is drawn later is thinner, so that equal values show both.
_WIDTHS = {"ap": (3.8, 9.5), "alrp": (2.6, 7.0)}
_THIN = (1.4, 4.5)
_REGIMES = {
    "start": "start of training: all negatives relevant",
    "trained": "trained: few negatives relevant",
}
_QUANTITIES = {
    "median_s": ("time, forward + backward (ms)", 1e3),
    "peak_extra_bytes": ("peak extra memory (MiB)", 1 / 2**20),
}
_AXES = {"grid_negatives": "N, negatives", "positives": "P, positives"}
_PANEL = (5.4, 3.6)
_LEGEND_WIDTH = 2.7


@dataclass(frozen=True)
class _Panel:
    """One set of axes: a quantity over one size, at a fixed other size, in one regime."""

    regime: str
    quantity: str
    size: str
    other: str
    fixed: int


def draw(profile: Profile, path: Path) -> None:
    """Draw time and memory: curves where a size varies over a grid, else dots, a row a case."""
    panels = _panels(profile.cases)
    figure = _curves(profile, panels) if panels else _dots(profile)
    FigureCanvasAgg(figure).print_png(str(path))


def _panels(cases: list[CaseResult]) -> list[list[_Panel]]:
    """Rows of panels; none where neither size varies."""
    if any(case.regime is None for case in cases):
        return []
    sizes = {name: sorted({getattr(c, name) for c in cases}) for name in _AXES}
    varying = [name for name in _AXES if len(sizes[name]) > 1]
    if not varying:
        return []
    fixed = {name: values[len(values) // 2] for name, values in sizes.items()}
    other = dict(zip(_AXES, reversed(_AXES), strict=True))
    return [
        [_Panel(regime, quantity, x, other[x], fixed[other[x]]) for x in varying]
        for regime in dict.fromkeys(case.regime for case in cases if case.regime)
        for quantity in _QUANTITIES
    ]


def _curves(profile: Profile, panels: list[list[_Panel]]) -> Figure:
    rows, columns = len(panels), len(panels[0])
    width = max(7.0, _PANEL[0] * columns) + _LEGEND_WIDTH
    height = _PANEL[1] * rows + 1.2
    figure = _figure(width, height)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes_row, panel_row in zip(grid, panels, strict=True):
        for axes, panel in zip(axes_row, panel_row, strict=True):
            _draw_curves(axes, panel, profile.cases)
    handles = {}
    for axes in grid.flat:
        handles.update(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = sorted(handles, key=list(LABELS.values()).index)
    figure.legend(
        [handles[label] for label in order],
        order,
        loc="center left",
        bbox_to_anchor=(1 - _LEGEND_WIDTH / width + 0.005, 0.5),
        handlelength=3.6,
        frameon=False,
        title="colour: objective\nline: algorithm\nband: quartiles",
        alignment="left",
    )
    right = 1 - _LEGEND_WIDTH / width
    _frame(figure, profile, "What ranking losses cost", right, height)
    return figure


def _draw_curves(axes: Axes, panel: _Panel, cases: list[CaseResult]) -> None:
    label, scale = _QUANTITIES[panel.quantity]
    chosen = [c for c in cases if c.regime == panel.regime]
    chosen = [c for c in chosen if getattr(c, panel.other) == panel.fixed]
    points: dict[str, list[dict]] = {}
    for case in sorted(chosen, key=lambda c: getattr(c, panel.size)):
        for row in case.rows():
            if row[panel.quantity] is not None:
                point = {**row, "size": getattr(case, panel.size)}
                points.setdefault(row["loss"], []).append(point)
    for loss, rows in sorted(points.items(), key=lambda item: list(LABELS).index(item[0])):
        colour, line, marker = style_of(loss)
        width, marker_size = (
            _WIDTHS.get(LOSS_NAMES[loss][0], _THIN) if loss in LOSS_NAMES else _THIN
        )
        sizes = [row["size"] for row in rows]
        values = [scale * row[panel.quantity] for row in rows]
        axes.plot(
            sizes, values, line, marker=marker, color=colour, label=LABELS[loss],
            linewidth=width, markersize=marker_size,
            markerfacecolor="white" if line != "-" else colour,
        )  # fmt: skip
        if panel.quantity == "median_s":
            low = [scale * row["quartile_1_s"] for row in rows]
            high = [scale * row["quartile_3_s"] for row in rows]
            axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks := sorted({getattr(c, panel.size) for c in chosen}))
    axes.set_xticklabels([f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    _label_scale(axes.yaxis, *axes.get_ylim())
    axes.set_xlabel(_AXES[panel.size])
    axes.set_ylabel(label)
    letter = "P" if panel.other == "positives" else "N"
    axes.set_title(f"{_REGIMES[panel.regime]}, {letter} = {panel.fixed:,}", fontsize=10)
    axes.grid(True, which="major", color="0.85")
    axes.grid(True, which="minor", color="0.95")
    axes.set_axisbelow(True)


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _label_scale(axis: Axis, lowest: float, highest: float) -> None:
    """Plain numbers on a logarithmic axis; 2 and 5 between the powers where it is short."""
    axis.set_major_formatter(FuncFormatter(_plain))
    short = highest < 100 * lowest
    axis.set_minor_locator(LogLocator(subs=(2, 5) if short else range(2, 10), numticks=20))
    axis.set_minor_formatter(FuncFormatter(_plain) if short else NullFormatter())


def _dots(profile: Profile) -> Figure:
    losses = max(len(case.entries) for case in profile.cases)
    height = (0.3 * losses + 1.3) * len(profile.cases) + 1.2
    figure = _figure(13, height)
    grid = figure.subplots(len(profile.cases), 2, squeeze=False)
    for axes_row, case in zip(grid, profile.cases, strict=True):
        for axes, quantity in zip(axes_row, _QUANTITIES, strict=True):
            _draw_dots(axes, case, quantity)
    _frame(figure, profile, "What ranking losses cost", 1, height)
    return figure


def _draw_dots(axes: Axes, case: CaseResult, quantity: str) -> None:
    label, scale = _QUANTITIES[quantity]
    rows = case.rows()
    values = [None if row[quantity] is None else scale * row[quantity] for row in rows]
    axes.set_xscale("log")
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        if value is None:
            continue
        colour, *_ = style_of(row["loss"])
        axes.plot(value, place, "o", color=colour, markersize=9)
        axes.annotate(
            f"{value:.3g}", (value, place), xytext=(9, 0), textcoords="offset points",
            va="center", fontsize=9,
        )  # fmt: skip
    known = [value for value in values if value]
    if known:
        limits = min(known) / 1.5, max(known) * 2
        axes.set_xlim(*limits)
        _label_scale(axes.xaxis, *limits)
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        if value is None:
            text = "skipped: " + row["skipped"] if row["skipped"] else "not measured"
            axes.annotate(
                textwrap.shorten(text, 70), (0.01, place), xycoords=axes.get_yaxis_transform(),
                va="center", fontsize=8, color="0.4",
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [LABELS[row["loss"]] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.set_title(case.name, fontsize=10)
    axes.grid(True, which="both", color="0.88")
    axes.set_axisbelow(True)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=120)


def _frame(figure: Figure, profile: Profile, title: str, right: float, height: float) -> None:
    """Title with the machine, and a line on what is not there."""
    skipped = sum(entry.skipped is not None for case in profile.cases for entry in case.entries)
    total = sum(len(case.entries) for case in profile.cases)
    note = (
        f"{skipped} of {total} measurements were skipped; profile.csv says why." if skipped else ""
    )
    figure.suptitle(f"{title}\n{machine_in_words(profile)}", fontsize=11)
    figure.text(0.01, 0.1 / height, note, fontsize=9, color="0.3")
    figure.tight_layout(rect=(0, 0.3 / height, right, 1 - 0.1 / height))
