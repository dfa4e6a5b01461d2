"""The threshold with the best F1: worked out by hand, and by trying every score."""

import math

import numpy as np
import pytest

from bucketed_ranking.engine.thresholds import Curve, best_f1_threshold


def test_worked_out_by_hand():
    recall, scores = np.array([0.5, 1.0]), np.array([0.9, 0.3])
    # F1 is 2/3 at 0.9 (precision 1, recall 1/2) and 0.9 (about) at 0.3 (precision 0.82, recall 1).
    assert best_f1_threshold([Curve(scores, np.array([1.0, 0.82]), recall)]) == 0.3
    # With precision 0.4 at full recall the higher threshold wins: F1 0.57 against 0.67.
    assert best_f1_threshold([Curve(scores, np.array([1.0, 0.4]), recall)]) == 0.9


def test_without_detections_it_is_unknown():
    nothing = np.empty(0)
    assert math.isnan(best_f1_threshold([]))
    assert math.isnan(best_f1_threshold([Curve(nothing, nothing, nothing)]))


@pytest.mark.parametrize("seed", range(5))
def test_no_other_score_is_better(seed):
    rng = np.random.default_rng(seed)
    classes = []
    for _ in range(4):
        scores = np.sort(rng.random(30).round(1))[::-1]
        found = np.cumsum(rng.random(30) < 0.6)
        classes.append(Curve(scores, found / np.arange(1, 31), found / (found[-1] + 3)))

    def mean_f1(threshold: float) -> float:
        kept = [curve.scores >= threshold for curve in classes]
        points = [
            (curve.precision[k][-1], curve.recall[k][-1])
            for curve, k in zip(classes, kept, strict=True)
            if k.any()
        ]
        return sum(2 * p * r / (p + r) for p, r in points if p + r) / len(classes)

    best = max(map(mean_f1, np.arange(0, 1.05, 0.1)))
    assert mean_f1(best_f1_threshold(classes)) == pytest.approx(best)
