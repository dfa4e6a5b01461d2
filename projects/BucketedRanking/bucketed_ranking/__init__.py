"""Ranking-based detection losses and their bucketed forms, on Detectron2.

Importing this package, or ``bucketed_ranking.losses``, imports nothing of Detectron2; the names of
the Python API (``Detector``, ``train``, ``evaluate`` and what they return) are imported on first
use. ``import bucketed_ranking.modeling`` registers the heads, meta-architectures and backbones.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .environment import installed_version
from .errors import BucketRankError

if TYPE_CHECKING:
    from .api import Detector, evaluate, train
    from .engine.detections import Detection, Detections
    from .engine.prediction import Prediction, Progress
    from .engine.processes import TrainingInterruptedError
    from .results import AveragePrecision, Evaluation, Training

__version__ = installed_version("bucketrank") or "0+unknown"
"""``0+unknown`` where the sources are used without installing them."""

_API = {
    "AveragePrecision": "results",
    "Detection": "engine.detections",
    "Detections": "engine.detections",
    "Detector": "api",
    "Evaluation": "results",
    "Prediction": "engine.prediction",
    "Progress": "engine.prediction",
    "Training": "results",
    "TrainingInterruptedError": "engine.processes",
    "evaluate": "api",
    "train": "api",
}
"""The module of each name of the Python API."""

__all__ = [
    "AveragePrecision", "BucketRankError", "Detection", "Detections", "Detector", "Evaluation",
    "Prediction", "Progress", "Training", "TrainingInterruptedError", "__version__", "evaluate",
    "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .detectron2_setup import require_detectron2

    require_detectron2(f"{__name__}.{name}")
    return getattr(import_module(f"{__name__}.{_API[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
