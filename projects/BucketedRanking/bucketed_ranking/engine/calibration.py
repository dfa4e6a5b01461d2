"""Calibrated scores: how likely it is that a detection is right.

A ranking loss fixes the order of scores, not their level. One increasing map from score to
probability, fitted on validation data, gives them a level and leaves their order alone.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, logit

# Of the map, the part that is no fit, but rises with every number that a float32 can be. It is
# large enough that rounding in float64 never makes two scores one.
_RISE = 1e-4
_LAST_NUMBER = int(np.float32(1).view(np.int32))
# With fewer right or wrong detections nothing is fitted, or nothing but the logistic.
_LEAST, _LEAST_ISOTONIC = 10, 100
_LEAST_SLOPE = 1e-3
_LOGITS = np.linspace(-16, 16, 321)


class MatchedDetections(NamedTuple):
    """What an evaluation has counted: detections in any order, those in crowds left out."""

    pictures: np.ndarray
    """[N] integers: which picture each is in."""
    scores: np.ndarray
    """[N] as the detector gives them."""
    right: np.ndarray
    """[N] bool: whether it is matched with an object, at IoU 0.5."""


@dataclass(frozen=True)
class ScoreMap:
    """A strictly increasing, piecewise linear map from score to probability.

    Equal scores stay equal, and any two float32 scores that differ keep their order, so that no AP
    changes.
    """

    method: str
    scores: tuple[float, ...]
    """Knots, rising."""
    probabilities: tuple[float, ...]
    """At the knots, not falling."""

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities, float64 in [0, 1], for float32 scores in [0, 1] of any shape.

        In float32 the largest probabilities would lie too close to be told apart.
        """
        scores = np.clip(np.asarray(scores, dtype=np.float32), 0, 1) + np.float32(0)  # no -0
        fitted = np.interp(scores.astype(np.float64), self.scores, self.probabilities)
        # Floats that are not negative have the order of the integers that their bits are.
        number = np.ascontiguousarray(scores).view(np.int32) / _LAST_NUMBER
        return (1 - _RISE) * fitted + _RISE * number.reshape(scores.shape)

    def as_knots(self) -> tuple[np.ndarray, np.ndarray]:
        """The map for programs that have none but :func:`numpy.interp`: float64 [K] of scores, from
        0 to 1, and their probabilities. Between powers of two the number of a float is linear."""
        powers = np.append(0, np.ldexp(1.0, np.arange(-126, 1)))
        numbers = powers.astype(np.float32).view(np.int32) / _LAST_NUMBER
        knots = np.union1d(np.clip(self.scores, 0, 1), powers)
        fitted = np.interp(knots, self.scores, self.probabilities)
        return knots, (1 - _RISE) * fitted + _RISE * np.interp(knots, powers, numbers)


def fit_score_map(matched: MatchedDetections) -> ScoreMap | None:
    """Fit a map from score to the probability of being right.

    Isotonic regression (centred: Oron and Flournoy, 2017) or a logistic in the logit of the score
    (Platt, 1999), whichever has the lower error on the half of the pictures that it was not
    fitted on; with fewer than 100 right or 100 wrong detections the logistic.

    All detections that COCO's measure counts take part, as for D-ECE; most have a low score.

    Returns:
        None where fewer than 10 detections are right, or fewer than 10 are wrong.
    """
    rare = min(matched.right.sum(), (~matched.right).sum())
    if rare < _LEAST:
        return None
    method = "logistic"
    if rare >= _LEAST_ISOTONIC:
        errors = {m: calibration_error(cross_fitted(matched, m), matched.right) for m in _FITS}
        method = min(errors, key=lambda m: errors[m])
    return _FITS[method](matched.scores, matched.right)


def cross_fitted(matched: MatchedDetections, method: str) -> np.ndarray:
    """Probabilities [N] of each detection by the map of the other half of the pictures."""
    _, position = np.unique(matched.pictures, return_inverse=True)
    first = position % 2 == 0
    probabilities = np.empty(len(first))
    for half in (first, ~first):
        fitted = _FITS[method](matched.scores[~half], matched.right[~half])
        probabilities[half] = fitted(matched.scores[half])
    return probabilities


def calibration_error(scores: np.ndarray, right: np.ndarray, bins: int = 20) -> float:
    """Detection calibration error (D-ECE; Küppers et al., CVPR Workshops 2020, equation 4).

    The mean over detections of the distance between the mean score and the precision in a bin of
    scores; bins are of equal width. NaN without detections.
    """
    if not len(scores):
        return math.nan
    mean, precision, counts = reliability(scores, right, bins)
    return float((counts * np.abs(mean - precision)).sum() / len(scores))


def reliability(
    scores: np.ndarray, right: np.ndarray, bins: int = 20
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean score, precision and number of detections of every bin that has one."""
    index = np.minimum((scores * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    sums, hits = (np.bincount(index, each, bins) for each in (scores, right))
    there = counts > 0
    return sums[there] / counts[there], hits[there] / counts[there], counts[there]


def precision_thresholds(scores: np.ndarray, right: np.ndarray) -> dict[int, float]:
    """The lowest score from which on the precision of all detections is so many percent.

    Returns:
        By percent, 1 to 100; levels that no threshold reaches are left out.
    """
    order = np.argsort(-scores, kind="stable")
    falling, hits = scores[order], np.cumsum(right[order])
    last_of_score = np.append(np.diff(falling) != 0, True) if len(falling) else []
    percent = (100 * hits / np.arange(1, len(hits) + 1))[last_of_score]
    falling = falling[last_of_score]
    lowest = {}
    for level in range(1, 101):
        reached = np.flatnonzero(percent >= level)
        if len(reached):
            lowest[level] = float(falling[reached[-1]])
    return lowest


def _fit_isotonic(scores: np.ndarray, right: np.ndarray) -> ScoreMap:
    knots, position, counts = np.unique(scores, return_inverse=True, return_counts=True)
    hits = np.bincount(position, right)
    blocks = isotonic_regression(hits / counts, weights=counts).blocks[:-1]
    counts_of, sums, hits_of = (
        np.add.reduceat(each, blocks) for each in (counts, knots * counts, hits)
    )
    return _as_map("isotonic", sums / counts_of, hits_of / counts_of)


def _fit_logistic(scores: np.ndarray, right: np.ndarray) -> ScoreMap:
    logits = logit(np.clip(scores, *expit(_LOGITS[[0, -1]])))
    centre, spread = logits.mean(), float(logits.std())
    spread = spread if spread > 1e-6 else 1.0  # one score has no slope: that of logits
    standard = (logits - centre) / spread
    # Platt's targets, which keep the slope finite where scores separate right from wrong.
    hits = right.sum()
    targets = np.where(right, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, offset = parameters
        raw = slope * standard + offset
        residuals = expit(raw) - targets
        nll = np.logaddexp(0, raw) - targets * raw
        return nll.mean(), np.array([(residuals * standard).mean(), residuals.mean()])

    start = (1.0, math.log((hits + 1) / (len(right) - hits + 1)))
    bounds = [(_LEAST_SLOPE, None), (None, None)]
    slope, offset = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    raw = slope * (_LOGITS - centre) / spread + offset
    return _as_map("logistic", expit(_LOGITS), expit(raw))


def _as_map(method: str, scores: np.ndarray, probabilities: np.ndarray) -> ScoreMap:
    return ScoreMap(method, tuple(scores.tolist()), tuple(probabilities.tolist()))


_FITS = {"logistic": _fit_logistic, "isotonic": _fit_isotonic}
