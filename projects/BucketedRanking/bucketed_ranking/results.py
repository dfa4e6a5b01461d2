"""What a training or an evaluation has measured, as objects; results.json has the same."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from .engine.run_folder import REPORT


@dataclass(frozen=True)
class AveragePrecision:
    """Of boxes or masks, in percent; NaN where there is no ground truth of the kind."""

    summary: Mapping[str, float]
    """AP, AP50, AP75, APs, APm, APl, and on LVIS APr, APc, APf."""
    per_class: Mapping[str, float]
    """AP by class name."""
    score_threshold: float
    """That of the best F1 at IoU 0.5, as the model gives scores; NaN: not known."""
    unreadable_images: int
    """Pictures that could not be read, and are left out."""

    @property
    def ap(self) -> float:
        """The mean over IoU 0.5 to 0.95."""
        return self.summary["AP"]

    @property
    def ap50(self) -> float:
        """At IoU 0.5."""
        return self.summary["AP50"]

    @classmethod
    def from_results(cls, results: Mapping[str, Any] | None) -> Self | None:
        """Of a task in results.json."""
        if results is None:
            return None
        return cls(
            _numbers({key: value for key, value in results.items() if key.startswith("AP")}),
            _numbers(results["per_class"]),
            _number(results.get("score_threshold")),
            results.get("unreadable_images", 0),
        )


@dataclass(frozen=True, kw_only=True)
class _Measured:
    dataset: str
    """What it was measured on."""
    loss: str
    bbox: AveragePrecision | None
    """Of boxes; None where they are not measured, as on Cityscapes."""
    segm: AveragePrecision | None
    """Of masks; None where the detector has none."""
    box_proposals: Mapping[str, float]
    """Average recall of an RPN's boxes, in percent, "AR@100", ...; empty: not measured, as it is
    with MODEL.META_ARCHITECTURE "ProposalNetwork", and then alone."""
    calibration: Mapping[str, float]
    """See :func:`bucketed_ranking.engine.run_calibration.measure`; empty: not measured."""
    folder: Path
    """Where results.json is, and all else."""

    @classmethod
    def from_results(cls, results: Mapping[str, Any], folder: Path) -> Self:
        """Of the content of results.json and its folder."""
        known: dict[str, Any] = {
            "bbox": AveragePrecision.from_results(results.get("bbox")),
            "segm": AveragePrecision.from_results(results.get("segm")),
            "box_proposals": _numbers(results.get("box_proposals") or {}),
            "calibration": _numbers(results.get("calibration") or {}),
            "folder": folder,
        }
        plain = {
            each.name: results.get(each.name) for each in fields(cls) if each.name not in known
        }
        return cls(**known, **plain)


@dataclass(frozen=True, kw_only=True)
class Evaluation(_Measured):
    """A detector on a data set."""

    weights: str
    """Their path or address."""
    skipped: Mapping[str, int]
    """Annotations and pictures that the data's checks left out, by reason."""


@dataclass(frozen=True, kw_only=True)
class Training(_Measured):
    """A finished run, measured on its validation data with its last weights.

    Times and memory are None where they were not measured.
    """

    iterations: int
    best: Mapping[str, float] | None
    """The "iterations" after which the weights were best, and their AP in percent ("bbox/AP", or
    "segm/AP" of a detector of masks); None: nothing was evaluated in between."""
    final_losses: Mapping[str, float]
    unreadable_images: int
    """Training pictures that could not be read and were replaced by others."""
    images_per_ranking: int
    seconds_per_iteration: float | None
    images_per_second: float | None
    loss_ms_per_iteration: float | None
    classification_loss_ms_per_iteration: float | None
    peak_memory_bytes: int | None

    @property
    def best_ap(self) -> float | None:
        """The AP in `best`."""
        return next((v for key, v in (self.best or {}).items() if key.endswith("/AP")), None)

    @property
    def report(self) -> Path | None:
        """The page on where the detector fails; None: there is none."""
        return path if (path := self.folder / REPORT).is_file() else None


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: _number(value) for key, value in values.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else value  # JSON has no NaN
