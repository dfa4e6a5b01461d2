"""A step of training that gave no finite losses or gradients, as a file.

The file holds tensors and builtins alone: torch.load reads it without running code.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import nn

from ..data.files import atomic_file
from ..errors import BucketRankError
from .setup import default_config

_TENSORS = {"Boxes": Boxes, "BitMasks": BitMasks}


def as_plain(image: dict[str, Any]) -> dict[str, Any]:
    """An image of a training batch as tensors and builtins, its objects too."""
    objects = image["instances"]
    plain = {key: image.get(key) for key in ("file_name", "image_id", "height", "width")}
    plain["image"] = image["image"]
    plain["image_size"] = list(objects.image_size)
    plain["fields"] = {name: _encode(value) for name, value in objects.get_fields().items()}
    return plain


def as_image(plain: dict[str, Any]) -> dict[str, Any]:
    """The image that :func:`as_plain` was given."""
    image = {key: value for key, value in plain.items() if key not in ("image_size", "fields")}
    fields = {name: _decode(*value) for name, value in plain["fields"].items()}
    return {**image, "instances": Instances(tuple(plain["image_size"]), **fields)}


def _encode(value: Any) -> tuple[str, Any]:
    kind = type(value).__name__
    if isinstance(value, PolygonMasks):
        return kind, [[torch.as_tensor(p) for p in polygons] for polygons in value.polygons]
    return kind, value.tensor if kind in _TENSORS else value


def _decode(kind: str, value: Any) -> Any:
    if kind == "PolygonMasks":
        return PolygonMasks([[polygon.numpy() for polygon in polygons] for polygons in value])
    return _TENSORS[kind](value) if kind in _TENSORS else value


def save_step(
    path: Path,
    cfg: CfgNode,
    iteration: int,
    model: nn.Module,
    grad_scale: float,
    losses: dict[str, float],
    batches: list[list[dict[str, Any]]],
) -> None:
    """Save a step of the iteration; `model` is as before it.

    Args:
        grad_scale: what losses were multiplied by for their gradients.
        losses: what they were, means over all processes.
        batches: of each process, the images as :func:`as_plain` gives them.
    """
    step = {
        "config": cfg.dump(),
        "iteration": iteration,
        "seed": cfg.SEED,
        "model": dict(model.state_dict()),
        "loss_normalizer": getattr(model, "loss_normalizer", None),
        "grad_scale": grad_scale,
        "losses": losses,
        "batches": batches,
    }
    with atomic_file(path) as file:
        torch.save(step, file)


def load_step(path: Path) -> tuple[CfgNode, dict[str, Any]]:
    """The config of a saved step, and all of the file.

    Raises:
        BucketRankError: the file is missing, damaged, or no step that this version can read.
    """
    try:
        step = torch.load(path, map_location="cpu", weights_only=True)
        cfg = default_config()
        cfg.merge_from_other_cfg(CfgNode.load_cfg(step["config"]))
    except FileNotFoundError as error:
        raise BucketRankError(f"There is no file {path}.") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BucketRankError(f"The step in {path} cannot be read: {reason}") from error
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise BucketRankError(
            f"{path} holds no step of training that this version can run ({error}); give a file "
            "from the folder nan of a run."
        ) from error
    return cfg, step
