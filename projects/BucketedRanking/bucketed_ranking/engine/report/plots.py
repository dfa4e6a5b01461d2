"""The pictures of a report, as PNG."""

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..reliability_plot import draw_reliability
from ..thresholds import Curve

# As many curves as can be told apart; of more classes these are the ones with the lowest AP.
MOST_CURVES = 8
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#000000")
_GREY = "#c8c8c8"
_LONGEST_NAME = 24


def precision_recall(curves: Mapping[str, Curve], chosen: Sequence[str]) -> bytes:
    """Precision over recall of every class, precision as COCO interpolates it.

    Args:
        curves: by class name.
        chosen: the classes that have a colour and stand in the legend.
    """

    def draw(axes: Axes, curve: Curve, **style: object) -> None:
        precision = np.maximum.accumulate(curve.precision[::-1])[::-1]
        recall = np.concatenate([[0], _thin(curve.recall), curve.recall[-1:]])
        axes.plot(recall, np.concatenate([precision[:1], _thin(precision), [0]]), **style)

    return _draw_classes(curves, chosen, draw, "recall", "precision")


def f1_over_score(
    curves: Mapping[str, Curve],
    chosen: Sequence[str],
    probability: Callable[[np.ndarray], np.ndarray],
    threshold: float | None,
    label: str,
) -> bytes:
    """F1 of every class over the score from which on detections are kept.

    Args:
        curves, chosen: as above.
        probability: from the detector's scores to those of the axis, which `label` names.
        threshold: of the axis, to be marked.
    """

    def draw(axes: Axes, curve: Curve, **style: object) -> None:
        f1 = 2 * curve.precision * curve.recall
        f1 /= np.maximum(curve.precision + curve.recall, 1e-12)
        # From one score to the next lower one the same detections are kept; above all, none.
        scores = np.append(1, probability(_thin(curve.scores)))
        axes.plot(scores, np.append(0, _thin(f1)), drawstyle="steps-post", **style)

    return _draw_classes(curves, chosen, draw, label, "F1", mark=threshold)


def _draw_classes(
    curves: Mapping[str, Curve],
    chosen: Sequence[str],
    draw: Callable[..., None],
    xlabel: str,
    ylabel: str,
    mark: float | None = None,
) -> bytes:
    figure, axes = _panel(xlabel, ylabel)
    some = {name: curve for name, curve in curves.items() if len(curve.scores)}
    for name in some.keys() - set(chosen):
        draw(axes, some[name], color=_GREY, linewidth=0.8, zorder=1)
    for name, colour in zip(chosen, _COLOURS, strict=False):
        if name in some:
            draw(axes, some[name], color=colour, linewidth=1.6, label=_plain(name))
    if mark is not None:
        axes.axvline(mark, color="#555", linestyle=":", linewidth=1.2)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return _finish(figure, axes)


def over_iterations(lines: Mapping[str, Sequence[tuple[int, float]]], ylabel: str) -> bytes:
    """Lines of pairs of iteration and value, by label; few points are marked."""
    figure, axes = _panel("iteration", ylabel)
    for (name, points), colour in zip(lines.items(), _COLOURS * len(lines), strict=False):
        marker = "o" if len(points) < 20 else ""
        iterations, values = zip(*points, strict=True)
        axes.plot(iterations, values, marker, linestyle="-", color=colour, label=_plain(name))
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    return _finish(figure, axes)


def reliability_diagram(caption: str, scores: np.ndarray, right: np.ndarray) -> bytes:
    """See :func:`draw_reliability`."""
    stream = io.BytesIO()
    draw_reliability({caption: (scores, right)}, stream)
    return stream.getvalue()


def _panel(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 4.2), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel, axisbelow=True)
    axes.grid(True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finish(figure: Figure, axes: Axes) -> bytes:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        columns = 1 if len(handles) < 3 else 2
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _thin(points: np.ndarray) -> np.ndarray:
    """About as many of them as a picture can show."""
    return points[:: 1 + len(points) // 2000]


def _plain(name: str) -> str:
    """A name as matplotlib shows it: no formula, no private label, no endless one."""
    short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    short = short.replace("$", r"\$")
    return f" {short}" if short.startswith("_") else short
