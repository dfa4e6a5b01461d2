"""The calibration of a run's weights: fitted when they are evaluated, found again by them."""

import hashlib
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..data.files import write_atomically
from ..errors import BucketRankError
from .calibration import (
    MatchedDetections,
    ScoreMap,
    calibration_error,
    cross_fitted,
    fit_score_map,
    precision_thresholds,
)

logger = logging.getLogger(__name__)

FOLDER = "calibration"


@dataclass(frozen=True)
class Calibration:
    """A map from score to probability, and thresholds; stored as JSON."""

    dataset: str
    """What it was fitted on."""
    score_map: ScoreMap
    best_f1: float
    """The score with the best F1, as the detector gives it; NaN: not known."""
    precision: dict[int, float]
    """See :func:`precision_thresholds`; as the detector gives scores."""

    def threshold(self, precision: float | None = None, *, raw: bool = False) -> float:
        """The score, calibrated or as the detector gives it, from which on detections are kept.

        Args:
            precision: that all of them together have on validation data, in 0..1, rounded up to
                percent; None: the threshold with the best F1, NaN where it is not known.

        Raises:
            BucketRankError: no threshold reaches the precision.
        """
        score = self.best_f1
        if precision is not None:
            percent = math.ceil(round(100 * precision, 6))
            if percent not in self.precision:
                raise BucketRankError(
                    f"No score threshold gives a precision of {percent} % on {self.dataset}; the "
                    f"highest that one gives is {max(self.precision, default=0)} %."
                )
            score = self.precision[percent]
        return score if raw else float(self.score_map(np.array(score)))

    def write(self, path: Path) -> None:
        """Thresholds are written in both units, calibrated ones for other programs."""
        best = None if math.isnan(self.best_f1) else self.best_f1
        content = {
            "dataset": self.dataset,
            "method": self.score_map.method,
            "scores": self.score_map.scores,
            "probabilities": self.score_map.probabilities,
            "best_f1": best if best is None else self.threshold(),
            "best_f1_raw": best,
            "precision": {k: self.threshold(k / 100) for k in self.precision},
            "precision_raw": self.precision,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Raises BucketRankError where the file is damaged."""
        try:
            content = json.loads(path.read_text())
            knots = tuple(content["scores"]), tuple(content["probabilities"])
            best = content["best_f1_raw"]
            precision = {int(k): float(v) for k, v in content["precision_raw"].items()}
            return cls(
                content["dataset"],
                ScoreMap(content["method"], *knots),
                math.nan if best is None else best,
                precision,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BucketRankError(
                f"{path} is damaged ({error}); remove it, and `bucketrank eval` writes it anew."
            ) from error


def fingerprint(model: nn.Module) -> str:
    """A name for the weights of a model: the same after any saving, loading or moving."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        values = value.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()


def find_calibration(run_dir: Path, model: nn.Module) -> Calibration | None:
    """The calibration of a run that was fitted for the weights of `model`; None: there is none.

    Raises:
        BucketRankError: its file is damaged.
    """
    if not (run_dir / FOLDER).is_dir():
        return None
    path = run_dir / FOLDER / f"{fingerprint(model)}.json"
    return Calibration.read(path) if path.is_file() else None


def calibrate_run(
    run_dir: Path, model: nn.Module, dataset: str, matched: MatchedDetections, best_f1: float
) -> dict[str, float]:
    """Fit the calibration of a run's weights by an evaluation on its validation data, and store it.

    Nothing is stored, and a line of the log says so, where there are too few detections to fit it.

    Args:
        best_f1: the score with the best F1, as the detector gives it; NaN: not known.

    Returns:
        The numbers of :func:`measure`. Calibrated detections are measured by the map of the other
        half of the pictures.
    """
    fitted = fit_score_map(matched)
    if fitted is None:
        hits = int(matched.right.sum())
        logger.warning(
            "Scores are not calibrated: of %d detections on %s %d are right, and a calibration "
            "needs 10 right and 10 wrong ones",
            len(matched.right), dataset, hits,
        )  # fmt: skip
        return measure(matched, best_f1)
    thresholds = precision_thresholds(matched.scores, matched.right)
    calibration = Calibration(dataset, fitted, best_f1, thresholds)
    calibration.write(run_dir / FOLDER / f"{fingerprint(model)}.json")
    return measure(matched, best_f1, cross_fitted(matched, fitted.method))


def measure(
    matched: MatchedDetections, best_f1: float, probabilities: np.ndarray | None = None
) -> dict[str, float]:
    """How far scores, and calibrated ones, are from the share of right detections.

    Returns:
        "error" and "error_calibrated", the D-ECE of all detections; "kept_error" and
        "kept_error_calibrated", of those from the score threshold with the best F1 on, which are
        the same ones whatever the level of the scores. Calibrated ones where they are given.
    """
    kept = matched.scores >= best_f1
    measured = {}
    for name, scores in (("", matched.scores), ("_calibrated", probabilities)):
        if scores is not None:
            measured[f"error{name}"] = calibration_error(scores, matched.right)
            measured[f"kept_error{name}"] = calibration_error(scores[kept], matched.right[kept])
    return measured
