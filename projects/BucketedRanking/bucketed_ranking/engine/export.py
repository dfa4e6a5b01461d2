"""Write a trained detector for other programs."""

import json
from pathlib import Path

from safetensors.torch import save

from ..data.files import atomic_file
from ..environment import installed_version
from ..errors import BucketRankError
from .inference import TrainedDetector


def export_safetensors(detector: TrainedDetector, path: Path) -> None:
    """Write the weights as a safetensors file, which other programs read without running code.

    Tensors have the names of Detectron2's checkpoints. The file's metadata has, as text, "config"
    (YAML, all keys), "class_names" (a JSON list), "iterations", "calibration" (JSON: the
    knots of the map from score to probability, or null), and the versions that wrote it.

    Raises:
        BucketRankError: there is a file already, or it would not be a safetensors file.
    """
    if path.suffix != ".safetensors":
        raise BucketRankError(f"{path} must end in .safetensors: by that programs know the format.")
    if path.exists():
        raise BucketRankError(f"There is a file {path} already; choose another with --out.")
    # Copies: the format refuses tensors that share memory or are views.
    weights = {k: v.cpu().contiguous().clone() for k, v in detector.model.state_dict().items()}
    score_map = detector.calibration.score_map if detector.calibration else None
    metadata = {
        "format": "pt",
        "config": detector.cfg.dump(),
        "class_names": json.dumps(detector.record.get("class_names")),
        "iterations": json.dumps(detector.iterations),
        "calibration": json.dumps(score_map and vars(score_map)),
        "bucketrank": str(installed_version("bucketrank")),
        "torch": str(installed_version("torch")),
    }
    with atomic_file(path) as file:
        file.write(save(weights, metadata))
