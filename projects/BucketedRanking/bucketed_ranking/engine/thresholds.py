"""The score threshold above which a detector's boxes are worth drawing."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """Precision and recall of one class, each [N], where detections from a score [N] on are kept.

    Scores fall.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def best_f1_threshold(curves: Iterable[Curve]) -> float:
    """The score at which the F1 measure, averaged over the classes, is largest.

    Ranking losses fix the order of scores, not their level, so no threshold is right for every
    detector. This one balances precision and recall.

    Returns:
        The threshold; NaN where no class has a detection.
    """
    scores, gains = [np.empty(0)], [np.empty(0)]
    for curve in curves:
        f1 = 2 * curve.precision * curve.recall
        f1 /= np.maximum(curve.precision + curve.recall, 1e-12)
        scores.append(curve.scores)
        gains.append(np.diff(f1, prepend=0.0))
    falling, gain = np.concatenate(scores), np.concatenate(gains)
    if not len(falling):
        return math.nan
    # A threshold that falls passes the points of all classes one by one; each moves the sum of
    # the F1 by what its class gains there.
    order = np.argsort(-falling, kind="stable")
    falling, total = falling[order], np.cumsum(gain[order])
    last_of_score = np.append(np.diff(falling) != 0, True)
    return float(falling[last_of_score][np.argmax(total[last_of_score])])
