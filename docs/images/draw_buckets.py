"""Draw the figures of exact-ranking.md as SVG beside this file."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

DELTA = 1.0
POSITIVES = np.array([-0.6, 0.9, 3.4])
NEGATIVES = np.array([-2.3, -1.35, -1.1, -0.35, -0.2, 0.2, 0.45, 0.7, 1.2, 1.5, 2.2, 2.6, 4.0])
GREEN, RED, BLUE, GREY = "#2a8a3e", "#c0392b", "#2c5fa8", "#888888"
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "bucketrank", "font.family": "sans-serif",
    "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True,
}  # fmt: skip


def relation(x: np.ndarray) -> np.ndarray:
    """H_delta: 0 below -delta, 1 above delta, a line between."""
    return np.clip(x / (2 * DELTA) + 0.5, 0, 1)


def draw_logits(axes: plt.Axes, height: float = 0.0) -> None:
    axes.plot(NEGATIVES, np.full_like(NEGATIVES, height), "o", color=RED, markersize=5)
    axes.plot(POSITIVES, np.full_like(POSITIVES, height), "D", color=GREEN, markersize=8)


def logits_only(axes: plt.Axes, title: str) -> None:
    axes.set(ylim=(-0.75, 1.05), yticks=[], xlim=(-3, 5))
    axes.spines["left"].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10)


def relation_figure() -> plt.Figure:
    """What the negatives count for one positive."""
    figure, axes = plt.subplots(figsize=(7, 2.5))
    x, positive = np.linspace(-3, 5, 400), POSITIVES[1]
    axes.plot(x, relation(x - positive), color=BLUE)
    axes.vlines(NEGATIVES, 0, relation(NEGATIVES - positive), color=RED, linewidth=1, alpha=0.6)
    axes.plot(NEGATIVES, relation(NEGATIVES - positive), "o", color=RED, markersize=5)
    axes.plot([positive], [0], "D", color=GREEN, markersize=8, clip_on=False, zorder=3)
    ticks = [positive - DELTA, positive, positive + DELTA]
    axes.set_xticks(ticks, ["$s_i - δ$", "$s_i$", "$s_i + δ$"])
    axes.set(xlim=(-3, 5), ylim=(0, 1.05), yticks=[0, 0.5, 1], ylabel="$H(x - s_i)$")
    return figure


def buckets_figure() -> plt.Figure:
    """The two kinds of buckets on one axis."""
    figure, (published, lossless) = plt.subplots(2, figsize=(7, 3.6), sharex=True)
    logits_only(published, "published: borders at the positives, a bucket acts as its mean")
    published.vlines(POSITIVES, -0.3, 0.75, color=GREY, linestyle="--", linewidth=1)
    for bucket in np.split(NEGATIVES, np.searchsorted(NEGATIVES, POSITIVES)):
        published.plot([bucket.mean()], [0.5], "s", color=BLUE, markersize=4 + len(bucket))
        for negative in bucket:
            published.plot(
                [negative, bucket.mean()], [0, 0.5], color=BLUE, linewidth=0.6, alpha=0.6
            )
        published.text(bucket.mean(), 0.72, str(len(bucket)), ha="center", color=BLUE)
    draw_logits(published)
    logits_only(lossless, "lossless: borders at $s_i ± δ$, a bucket acts by its count and its sum")
    borders = np.sort(np.concatenate([POSITIVES - DELTA, POSITIVES + DELTA]))
    lossless.vlines(borders, -0.3, 0.75, color=GREY, linestyle="--", linewidth=1)
    edges = np.array([-3, *borders, 5])
    counts = np.histogram(NEGATIVES, edges)[0]
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        lossless.text((left + right) / 2, 0.5, str(count), ha="center", color=BLUE)
    for level, positive in enumerate(POSITIVES):
        height = -0.35 - 0.15 * level
        lossless.plot(
            [positive - DELTA, positive + DELTA], [height, height], color=GREEN, linewidth=2
        )
    draw_logits(lossless)
    lossless.set_xlabel("logit")
    return figure


def gradient_figure() -> plt.Figure:
    """The gradient of the negatives as one piecewise-linear function."""
    figure, axes = plt.subplots(figsize=(7, 2.7))
    above = relation(NEGATIVES - POSITIVES[:, None]).sum(1)
    ranks = relation(POSITIVES - POSITIVES[:, None]).sum(1) + above
    x = np.linspace(-3, 5, 800)
    shares = relation(x - POSITIVES[:, None]) / ranks[:, None] / len(POSITIVES)
    for share in shares:
        axes.plot(x, share, color=GREEN, linewidth=1, alpha=0.7)
    axes.plot(x, shares.sum(0), color=BLUE, linewidth=2)
    of_negatives = (relation(NEGATIVES - POSITIVES[:, None]) / ranks[:, None]).mean(0)
    axes.plot(NEGATIVES, of_negatives, "o", color=RED, markersize=5, zorder=3)
    borders = np.sort(np.concatenate([POSITIVES - DELTA, POSITIVES + DELTA]))
    axes.vlines(borders, 0, shares.sum(0).max(), color=GREY, linestyle="--", linewidth=1)
    axes.set(xlim=(-3, 5), ylim=(0, None), xlabel="logit of a negative", ylabel="its gradient")
    return figure


if __name__ == "__main__":
    with plt.rc_context(STYLE):
        for name, draw in {
            "relation": relation_figure, "buckets": buckets_figure, "gradient": gradient_figure
        }.items():  # fmt: skip
            draw().savefig(Path(__file__).with_name(f"{name}.svg"), metadata={"Date": None})
