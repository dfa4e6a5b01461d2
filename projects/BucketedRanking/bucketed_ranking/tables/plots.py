"""The pictures of a table: AP over iterations, where the time goes, AP against time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..loss_styles import LABELS, style_of
from .records import TASKS, Record
from .summary import Row

_COLUMNS = 3
_PANEL = (4.6, 3.6)
_PARTS = {
    "reading pictures": "#999999",
    "classification loss": "#D55E00",
    "box loss": "#E69F00",
    "network and the rest": "#56B4E9",
}


@dataclass(frozen=True)
class Picture:
    path: Path
    caption: str


def draw(records: Sequence[Record], rows: Sequence[Row], output: Path) -> list[Picture]:
    """Draw what there is to draw into a folder."""
    pictures = []
    output.mkdir(parents=True, exist_ok=True)
    curves = [record for record in records if any(record.curves.values())]
    if curves:
        pictures.append(Picture(output / "curves.png", "AP over the iterations of training"))
        _save(_curves(curves), pictures[-1].path)
    timed = [row for row in rows if _split(row)]
    if timed:
        pictures.append(Picture(output / "time.png", "Where the time of an iteration goes"))
        _save(_times(timed), pictures[-1].path)
    measured = [row for row in timed if any(row.metric(task, "AP") for task in TASKS)]
    if measured:
        pictures.append(Picture(output / "ap-time.png", "AP against the time of an iteration"))
        _save(_trade(measured), pictures[-1].path)
    return pictures


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_png(str(path))


def _panels(count: int, extra_width: float = 0.0) -> tuple[Figure, list[Axes]]:
    columns = min(_COLUMNS, count)
    lines = -(-count // columns)
    size = (max((_PANEL[0] + extra_width) * columns, 6.4), _PANEL[1] * lines + 0.9)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for empty in axes[count:]:
        empty.axis("off")
    return figure, axes


def _title(config: str, task: str | None = None) -> str:
    return config if task in (None, "bbox") else f"{config}, {TASKS[task]}s"


def _order(losses: Sequence[str]) -> list[str]:
    return sorted(dict.fromkeys(losses), key=list(LABELS).index)


def _curves(records: Sequence[Record]) -> Figure:
    panels = [
        (config, task)
        for config in dict.fromkeys(record.config for record in records)
        for task in TASKS
        if any(record.config == config and record.curves.get(task) for record in records)
    ]
    figure, all_axes = _panels(len(panels))
    for axes, (config, task) in zip(all_axes, panels, strict=False):
        of_config = [r for r in records if r.config == config and r.curves.get(task)]
        for loss in _order([record.loss for record in of_config]):
            curves = [dict(r.curves[task]) for r in of_config if r.loss == loss]
            _draw_curve(axes, loss, curves)
        axes.set_title(_title(config, task), fontsize=11)
        axes.set_xlabel("iteration")
        axes.set_ylabel(f"{TASKS[task]} AP (%), validation")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        _grid(axes)
    _legend(figure, all_axes)
    return figure


def _draw_curve(axes: Axes, loss: str, curves: Sequence[dict[int, float]]) -> None:
    """The mean over the seeds, and the range between the lowest and the highest."""
    colour, line, marker = style_of(loss)
    iterations = sorted(set.intersection(*[set(curve) for curve in curves]))
    values = [[curve[iteration] for curve in curves] for iteration in iterations]
    means = [sum(v) / len(v) for v in values]
    axes.plot(
        iterations, means, line, marker=marker, color=colour, label=LABELS[loss],
        markersize=5, linewidth=1.6, markerfacecolor="white" if line != "-" else colour,
    )  # fmt: skip
    if len(curves) > 1:
        low, high = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(iterations, low, high, color=colour, alpha=0.12, linewidth=0)


def _split(row: Row) -> dict[str, float] | None:
    """Milliseconds of an iteration by part; None where they were not measured."""
    total = row.statistic(lambda cell: cell.seconds_per_iteration)
    losses = row.statistic(lambda cell: cell.loss_ms)
    classification = row.statistic(lambda cell: cell.classification_loss_ms)
    data = row.statistic(lambda cell: cell.data_seconds_per_iteration)
    if total is None or losses is None or classification is None:
        return None
    reading = 1000 * data.mean if data else 0.0
    boxes = max(0.0, losses.mean - classification.mean)
    rest = max(0.0, 1000 * total.mean - reading - classification.mean - boxes)
    return dict(zip(_PARTS, (reading, classification.mean, boxes, rest), strict=True))


def _times(rows: Sequence[Row]) -> Figure:
    configs = list(dict.fromkeys(row.config for row in rows))
    figure, all_axes = _panels(len(configs), extra_width=1.4)
    for axes, config in zip(all_axes, configs, strict=False):
        of_config = {row.loss: _split(row) for row in rows if row.config == config}
        losses = _order(list(of_config))
        names = [LABELS[loss] for loss in losses]
        left = [0.0] * len(losses)
        for part, colour in _PARTS.items():
            widths = [of_config[loss][part] for loss in losses]
            if not any(widths):
                continue
            axes.barh(names, widths, left=left, color=colour, label=part)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for place, total in enumerate(left):
            axes.annotate(
                f"{total:.0f}", (total, place), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=9,
            )  # fmt: skip
        axes.set_xlim(0, 1.15 * max(left))
        axes.invert_yaxis()
        axes.set_title(config, fontsize=11)
        axes.set_xlabel("milliseconds an iteration")
        _grid(axes, "x")
    _legend(figure, all_axes)
    return figure


def _trade(rows: Sequence[Row]) -> Figure:
    panels = [
        (config, task)
        for config in dict.fromkeys(row.config for row in rows)
        for task in TASKS
        if any(row.config == config and row.metric(task, "AP") for row in rows)
    ]
    figure, all_axes = _panels(len(panels))
    for axes, (config, task) in zip(all_axes, panels, strict=False):
        of_config = {row.loss: row for row in rows if row.config == config}
        for loss in _order(list(of_config)):
            ap = of_config[loss].metric(task, "AP")
            seconds = of_config[loss].statistic(lambda cell: cell.seconds_per_iteration)
            if ap is None or seconds is None:
                continue
            colour, _, marker = style_of(loss)
            axes.errorbar(
                1000 * seconds.mean, ap.mean, yerr=ap.std, fmt=marker, color=colour, markersize=8,
                capsize=3, label=LABELS[loss], markerfacecolor=_filling(loss, colour),
            )  # fmt: skip
        axes.margins(0.15)
        axes.set_title(_title(config, task), fontsize=11)
        axes.set_xlabel("milliseconds an iteration (further left is faster)")
        axes.set_ylabel(f"{TASKS[task]} AP (%), validation")
        _grid(axes)
    _legend(figure, all_axes)
    return figure


def _filling(loss: str, colour: str) -> str:
    return colour if style_of(loss)[1] in ("-", "-.") else "white"


def _grid(axes: Axes, axis: str = "both") -> None:
    axes.grid(True, axis=axis, color="0.88")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(figure: Figure, all_axes: Sequence[Axes]) -> None:
    handles: dict[str, object] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = min(3, -(-len(handles) // 2))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns,
        frameon=False, handlelength=3,
    )  # fmt: skip
