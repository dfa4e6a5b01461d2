"""The pictures of a loss profile and of a table."""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..loss_styles import LABELS, style_of
from ..losses import LOSS_NAMES
from ..published import TASKS

if TYPE_CHECKING:  # it needs Detectron2
    from .rows import Row

# Width of line and marker: what is drawn later is thinner, so that equal values show both.
_WIDTHS = {"ap": (3.8, 9.5), "alrp": (2.6, 7.0)}
_THIN = (1.4, 4.5)
_BAND = {"alpha": 0.13, "linewidth": 0}
_REGIMES = {
    "start": "start of training: all negatives relevant",
    "trained": "trained: few negatives relevant",
}
_QUANTITIES = {
    "median_s": ("time, forward + backward (ms)", 1e3),
    "peak_extra_bytes": ("peak extra memory (MiB)", 1 / 2**20),
}
_SIZES = {"grid_negatives": "N, negatives", "positives": "P, positives"}
_PARTS = {
    "reading pictures": "#999999",
    "classification loss": "#D55E00",
    "box loss": "#E69F00",
    "network and the rest": "#56B4E9",
}


def draw_profile(cases: Sequence[dict[str, Any]], machine: str, path: Path) -> None:
    """Draw time and memory: curves where a size varies over a grid, else bars, a row a case.

    Args:
        cases: those of profile.json.
        machine: in words.
    """
    regimes = list(dict.fromkeys(case["regime"] for case in cases))
    varying = [size for size in _SIZES if len({case[size] for case in cases}) > 1]
    if varying and None not in regimes:
        panels = [(r, q, size) for r in regimes for q in _QUANTITIES for size in varying]
        figure, all_axes = _panels(len(panels), len(varying), width=5.4)
        for axes, panel in zip(all_axes, panels, strict=True):
            _draw_sizes(axes, cases, *panel)
        _legend(figure, all_axes, "colour: objective, line: algorithm, band: quartiles")
    else:
        height = 1.3 + 0.3 * len(cases[0]["entries"])
        figure, all_axes = _panels(2 * len(cases), 2, width=6.5, height=height)
        panels = product(cases, _QUANTITIES)
        for axes, (case, quantity) in zip(all_axes, panels, strict=True):
            label, scale = _QUANTITIES[quantity]
            values = [scale * (entry[quantity] or 0) for entry in case["entries"]]
            colours = [style_of(entry["loss"])[0] for entry in case["entries"]]
            names = [LABELS[entry["loss"]] for entry in case["entries"]]
            _draw_bars(axes, names, {"": (values, colours)}, "{:.3g}")
            _finish(axes, case["name"], label, "", "x")
    entries = [entry for case in cases for entry in case["entries"]]
    skipped = sum(entry["skipped"] is not None for entry in entries)
    note = f"\n{skipped} of {len(entries)} measurements skipped, see profile.csv" if skipped else ""
    figure.suptitle(f"What ranking losses cost\n{machine}{note}", fontsize=11)
    figure.savefig(path)


def _draw_sizes(axes: Axes, cases: Sequence[dict], regime: str, quantity: str, size: str) -> None:
    """Curves over one size, in one regime, at the middle value of the other size."""
    label, scale = _QUANTITIES[quantity]
    other = next(name for name in _SIZES if name != size)
    values = sorted({case[other] for case in cases})
    fixed = values[len(values) // 2]
    cases = [case for case in cases if case["regime"] == regime and case[other] == fixed]
    measured: dict[str, dict[int, dict]] = {}
    for case in sorted(cases, key=lambda case: case[size]):
        for entry in case["entries"]:
            if entry[quantity] is not None:
                measured.setdefault(entry["loss"], {})[case[size]] = entry
    for loss in sorted(measured, key=list(LABELS).index):
        xs, entries = list(measured[loss]), list(measured[loss].values())
        objective, _ = LOSS_NAMES.get(loss, (loss, None))
        style = _style(loss, *_WIDTHS.get(objective, _THIN))
        axes.plot(xs, [scale * entry[quantity] for entry in entries], label=LABELS[loss], **style)
        if quantity == "median_s":
            band = [[scale * e[f"quartile_{n}_s"] for e in entries] for n in (1, 3)]
            axes.fill_between(xs, *band, color=style["color"], **_BAND)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({case[size] for case in cases})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    _label_scale(axes.yaxis, *axes.get_ylim())
    title = f"{_REGIMES[regime]}, {_SIZES[other][0]} = {fixed:,}"
    _finish(axes, title, _SIZES[size], label)


def _label_scale(axis: Axis, lowest: float, highest: float) -> None:
    """Plain numbers on a logarithmic axis; 2 and 5 between the powers where it is short."""
    plain = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 100 else f"{value:.3g}")
    axis.set_major_formatter(plain)
    short = highest < 100 * lowest
    axis.set_minor_locator(LogLocator(subs=(2, 5) if short else range(2, 10), numticks=20))
    axis.set_minor_formatter(plain if short else NullFormatter())


def draw_table(rows: Sequence["Row"], curves: Sequence["Row"], output: Path) -> dict[str, str]:
    """Draw AP over iterations, where the time goes, and AP against time, as far as it is known.

    Args:
        rows: of finished cells.
        curves: of cells that have been evaluated on the way.

    Returns:
        Captions by the names of the files.
    """
    timed = [row for row in rows if _split(row)]
    measured = [row for row in timed if any(row.statistic(f"{task}_AP") for task in TASKS)]
    pictures = {}
    for name, caption, draw, shown in (
        ("curves.png", "AP over the iterations of training", _draw_ap_curves, curves),
        ("time.png", "Where the time of an iteration goes", _draw_times, timed),
        ("ap-time.png", "AP against the time of an iteration", _draw_trade, measured),
    ):
        if shown:
            pictures[name] = caption
            figure = draw(sorted(shown, key=lambda row: list(LABELS).index(row.loss)))
            figure.savefig(output / name)
    return pictures


def _draw_by_task(
    rows: Sequence["Row"],
    known: Callable[["Row", str], object],
    draw: Callable[[Axes, "Row", str], None],
    xlabel: str,
) -> Figure:
    """A panel for each detector and task of which something is known; `draw` draws a row there."""
    panels = {
        (config, task): chosen
        for config in dict.fromkeys(row.config for row in rows)
        for task in TASKS
        if (chosen := [row for row in rows if row.config == config and known(row, task)])
    }
    figure, all_axes = _panels(len(panels))
    for axes, ((config, task), chosen) in zip(all_axes, panels.items(), strict=True):
        for row in chosen:
            draw(axes, row, task)
        title = config if task == "bbox" else f"{config}, {TASKS[task]}s"
        _finish(axes, title, xlabel, f"{TASKS[task]} AP (%), validation")
    _legend(figure, all_axes)
    return figure


def _draw_ap_curves(rows: Sequence["Row"]) -> Figure:
    def curves_of(row: "Row", task: str) -> list[dict[int, float]]:
        return [dict(cell["curves"][task]) for cell in row.cells if cell["curves"].get(task)]

    def draw(axes: Axes, row: "Row", task: str) -> None:
        # The mean over the seeds, and the range between the lowest and the highest.
        curves = curves_of(row, task)
        shared = sorted(set.intersection(*map(set, curves)))
        values = [[curve[iteration] for curve in curves] for iteration in shared]
        style = _row_style(row, 1.6, 5)
        axes.plot(shared, list(map(mean, values)), label=row.label, **style)
        low, high = list(map(min, values)), list(map(max, values))
        axes.fill_between(shared, low, high, color=style["color"], **_BAND)
        axes.update_datalim([(0, 0)])  # both axes begin at 0

    return _draw_by_task(rows, curves_of, draw, "iteration")


def _draw_trade(rows: Sequence["Row"]) -> Figure:
    def draw(axes: Axes, row: "Row", task: str) -> None:
        ap, seconds = row.statistic(f"{task}_AP"), row.statistic("seconds_per_iteration")
        style = _row_style(row, 1.5, 8) | {"linestyle": "none", "capsize": 3}
        axes.errorbar(1000 * seconds.mean, ap.mean, yerr=ap.std, label=row.label, **style)
        axes.margins(0.15)

    label = "milliseconds an iteration (further left is faster)"
    return _draw_by_task(rows, lambda row, task: row.statistic(f"{task}_AP"), draw, label)


def _split(row: "Row") -> list[float]:
    """Milliseconds of an iteration by part; empty where they were not measured."""
    names = ("seconds_per_iteration", "loss_ms", "classification_loss_ms")
    total, losses, classification = (row.statistic(name) for name in names)
    data = row.statistic("data_seconds_per_iteration")
    if total is None or losses is None or classification is None:
        return []
    reading = 1000 * data.mean if data else 0.0
    rest = 1000 * total.mean - reading - losses.mean
    parts = reading, classification.mean, losses.mean - classification.mean, rest
    return [max(0.0, part) for part in parts]


def _draw_times(rows: Sequence["Row"]) -> Figure:
    configs = list(dict.fromkeys(row.config for row in rows))
    figure, all_axes = _panels(len(configs), width=6)
    for axes, config in zip(all_axes, configs, strict=True):
        splits = {row.label: _split(row) for row in rows if row.config == config}
        widths = zip(*splits.values(), strict=True)
        parts = {part: (w, [_PARTS[part]]) for part, w in zip(_PARTS, widths, strict=True)}
        _draw_bars(axes, list(splits), parts, "{:.0f}")
        _finish(axes, config, "milliseconds an iteration", "", "x")
    _legend(figure, all_axes)
    return figure


def _draw_bars(
    axes: Axes, names: Sequence[str], parts: dict[str, tuple[Sequence[float], list]], form: str
) -> None:
    """Horizontal bars of several parts, from the top; each part has its widths and its colours."""
    left = [0.0] * len(names)
    for part, (widths, colours) in parts.items():
        if any(widths):
            axes.barh(names, widths, left=left, color=colours, label=part)
            left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, total in enumerate(left):
        text, where = form.format(total) if total else "not measured", {"xytext": (4, 0)}
        axes.annotate(text, (total, place), textcoords="offset points", va="center", **where)
    axes.set_xlim(0, 1.15 * max(left) or 1)
    axes.invert_yaxis()


def _style(loss: str, linewidth: float, markersize: float) -> dict[str, Any]:
    """How matplotlib draws a loss; the markers of exact losses and references are filled."""
    colour, line, marker = style_of(loss)
    filling = colour if line in ("-", "-.") else "white"
    look = {"color": colour, "linestyle": line, "marker": marker, "markerfacecolor": filling}
    return look | {"linewidth": linewidth, "markersize": markersize}


def _row_style(row: "Row", linewidth: float, markersize: float) -> dict[str, Any]:
    """How matplotlib draws a row of a table: as its loss, a variant in a colour of its own."""
    style = _style(row.loss, linewidth, markersize)
    if not row.number:
        return style
    return style | {"color": f"C{row.number - 1}", "markerfacecolor": "white"}


def _panels(
    count: int, columns: int = 3, width: float = 4.6, height: float = 3.6
) -> tuple[Figure, list[Axes]]:
    columns = min(columns, count)
    lines = -(-count // columns)
    size = (max(width * columns, 6.4), height * lines + 0.9)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for empty in axes[count:]:
        empty.axis("off")
    return figure, axes[:count]


def _finish(axes: Axes, title: str, xlabel: str, ylabel: str, grid: str = "both") -> None:
    axes.set_title(title, fontsize=10)
    axes.set(xlabel=xlabel, ylabel=ylabel, axisbelow=True)
    axes.grid(True, axis=grid, color="0.88")
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, all_axes: Sequence[Axes], title: str | None = None) -> None:
    pairs = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in all_axes)
    handles = {label: handle for pair in pairs for handle, label in pair}
    columns = max(1, min(3, -(-len(handles) // 2)))
    style = {"frameon": False, "handlelength": 3, "title": title, "ncols": columns}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", **style)
