"""Reliability diagrams: the share of right detections against their score."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from matplotlib.figure import Figure

from .calibration import calibration_error, reliability


def draw_reliability(
    diagrams: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path | IO[bytes], bins: int = 20
) -> None:
    """Draw diagrams side by side, each over a histogram of its scores, as a picture file.

    Args:
        diagrams: scores [N] in [0, 1] and whether each detection is right [N], by caption.
        path: its ending names the format, such as .png or .svg; of a stream it is PNG.
    """
    width = 3.6 * len(diagrams)
    figure = Figure(figsize=(width, 4.4), dpi=150, layout="constrained")
    grid = figure.subplots(2, len(diagrams), squeeze=False, sharex=True, height_ratios=(3, 1))
    for (caption, (scores, right)), (upper, lower) in zip(diagrams.items(), grid.T, strict=True):
        mean, precision, counts = reliability(scores, right, bins)
        upper.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1)
        upper.plot(mean, precision, "o-", color="#0072B2", markersize=4)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right detections")
        upper.set_title(f"{caption}\nD-ECE {calibration_error(scores, right, bins):.3f}")
        lower.bar(mean, counts, width=0.8 / bins, color="#56B4E9")
        lower.set(yscale="log", xlabel="score", ylabel="detections")
    figure.savefig(path)
