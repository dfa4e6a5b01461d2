"""Calibrated scores: order and ties kept exactly, errors worked out by hand, fits that recover."""

import math

import numpy as np
import pytest

from bucketed_ranking.engine.calibration import (
    MatchedDetections,
    ScoreMap,
    calibration_error,
    fit_score_map,
    precision_thresholds,
)
from bucketed_ranking.engine.reliability_plot import draw_reliability


def detections(count, probability, seed=0, top=1.0):
    """Scores in [0, top], of which a share `probability(score)` is right, ten in a picture."""
    rng = np.random.default_rng(seed)
    scores = (top * rng.random(count)).astype(np.float32).astype(float)
    return MatchedDetections(
        np.arange(count) // 10, scores, rng.random(count) < probability(scores)
    )


MAPS = {
    "steep": ScoreMap("", (0.04, 0.041), (0.0, 1.0)),
    "flat": ScoreMap("", (0.2, 0.8), (0.9, 0.9)),
    "fitted": fit_score_map(detections(3000, lambda s: 9 * s, top=0.1)),
    "logistic": fit_score_map(detections(60, lambda s: s)),
}


@pytest.mark.parametrize("name", MAPS)
def test_float32_scores_keep_their_order_and_their_ties(name):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, np.float32(1).view(np.int32), 20_000, dtype=np.int32)
    scores = np.concatenate([numbers, numbers + 1]).view(np.float32)  # next to each other
    scores = np.unique(np.append(scores, np.float32([0, 1e-45, 0.04, 0.041, 0.2, 0.8, 1])))
    mapped = MAPS[name](scores)
    assert mapped.dtype == np.float64
    assert (np.diff(mapped) > 0).all()
    assert mapped[0] >= 0
    assert mapped[-1] <= 1
    alone = np.array([MAPS[name](each) for each in scores[:100]])
    assert (alone == mapped[:100]).all()
    assert MAPS[name](np.float32(-0.0)) == MAPS[name](np.float32(0.0))


def test_the_error_is_that_of_the_papers_formula():
    # Bin 0.9: mean 0.9, precision 1/2. Bin 0.1: mean 0.12, none right.
    scores, right = np.array([0.91, 0.92, 0.12, 0.12]), np.array([True, False, False, False])
    expected = 0.5 * (0.915 - 0.5) + 0.5 * 0.12
    assert calibration_error(scores, right) == pytest.approx(expected)
    assert calibration_error(np.array([1.0]), np.array([True])) == 0
    assert math.isnan(calibration_error(np.empty(0), np.empty(0, dtype=bool)))


def test_low_scores_that_are_often_right_become_high():
    given = detections(4000, lambda s: 10 * s, top=0.1)
    score_map = fit_score_map(given)
    unseen = detections(4000, lambda s: 10 * s, seed=1, top=0.1)
    before = calibration_error(unseen.scores, unseen.right)
    after = calibration_error(score_map(unseen.scores), unseen.right)
    assert before > 0.4
    assert after < 0.04
    assert score_map(np.array(0.05)) == pytest.approx(0.5, abs=0.06)


def test_isotonic_regression_wins_where_no_logistic_fits():
    def two_steps(scores):
        return np.where(scores < 0.3, 0.02, np.where(scores < 0.9, 0.5, 0.98))

    assert fit_score_map(detections(6000, two_steps)).method == "isotonic"


def test_little_data_has_the_logistic_and_very_little_nothing():
    assert fit_score_map(detections(60, lambda s: s)).method == "logistic"
    assert fit_score_map(detections(60, lambda s: 0 * s)) is None
    assert fit_score_map(detections(12, lambda s: s)) is None
    assert fit_score_map(detections(0, lambda s: s)) is None


def test_scores_that_say_nothing_or_the_contrary_give_an_increasing_map():
    scores = np.linspace(0, 1, 101, dtype=np.float32)
    for given in (
        MatchedDetections(np.arange(60), np.full(60, 0.5), np.arange(60) % 3 == 0),
        detections(90, lambda s: 1 - s),
    ):
        mapped = fit_score_map(given)(scores)
        assert (np.diff(mapped) > 0).all()
        assert mapped[50] == pytest.approx(given.right.mean(), abs=0.05)


def test_the_threshold_of_a_precision_is_the_lowest():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.5])
    right = np.array([True, True, False, True, False, False])
    lowest = precision_thresholds(scores, right)
    assert lowest[100] == lowest[67] == 0.8
    assert lowest[66] == lowest[61] == 0.7
    assert lowest[60] == 0.6  # 3 of 5, ties together
    assert lowest[50] == 0.5
    assert 100 not in precision_thresholds(scores, ~right)
    assert precision_thresholds(np.empty(0), np.empty(0, dtype=bool)) == {}


def test_a_diagram_is_drawn(tmp_path):
    given = detections(500, lambda s: s)
    draw_reliability({"a": (given.scores, given.right)}, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
