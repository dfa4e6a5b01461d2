"""Weights of timm's models in a detector's checkpointer: finding `timm://NAME`, and their names."""

from typing import Any

import torch
from detectron2.utils.file_io import PathHandler, PathManager
from torch import nn

from ..errors import BucketRankError
from ..modeling.timm_backbones import TimmBackbone
from ..pretrained import PREFIX, weights_file


class _TimmHandler(PathHandler):
    """Files named timm://NAME: the ImageNet weights of a model of timm."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        return str(weights_file(path.removeprefix(PREFIX)))


PathManager.register_handler(_TimmHandler())


def timm_weights(
    weights: dict[str, Any], model: nn.Module, filename: str
) -> dict[str, torch.Tensor]:
    """The weights of a timm backbone by the names that they have in `model`, without the rest.

    Empty where `model` has no such backbone, or the weights are those of a whole detector.

    Raises:
        BucketRankError: they are of another model than the backbone.
    """
    for path, backbone in model.named_modules():
        if isinstance(backbone, TimmBackbone) and not any(key.startswith(path) for key in weights):
            wanted = backbone.model.state_dict()
            flat = {_flattened(key): value for key, value in weights.items()}
            found = {key: flat[_flattened(key)] for key in wanted if _flattened(key) in flat}
            unfit = [
                key
                for key, value in wanted.items()
                if not key.endswith("num_batches_tracked")
                and (key not in found or found[key].shape != value.shape)
            ]
            if unfit:
                raise BucketRankError(
                    f"The weights {filename} are not those of MODEL.TIMM.NAME: {len(unfit)} of its "
                    f"{len(wanted)} tensors are missing or have another shape, such as {unfit[0]}."
                )
            return {f"{path}.model.{key}": value for key, value in found.items()}
    return {}


def _flattened(key: str) -> str:
    """timm's models of features say "stages_0.x" where its classifiers say "stages.0.x"."""
    return key.replace("_", ".")
