"""Checkpoints: written whole; loaded safely, from several model zoos, from one loss to another."""

import logging
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.checkpoint import DetectionCheckpointer
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..data.files import atomic_file, write_atomically
from ..errors import BucketRankError
from .timm_weights import timm_weights

logger = logging.getLogger(__name__)

BEST, FINAL = "model_best", "model_final"

# What Detectron2's and torchvision's model zoos pickle: dictionaries of arrays, nothing else.
_ARRAY_GLOBALS = {
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}

_TORCHVISION_NAMES = [
    (r"layer(\d)", lambda match: f"res{int(match[1]) + 1}"),
    (r"downsample\.0", "shortcut"),
    (r"downsample\.1", "shortcut.norm"),
    (r"bn(\d)", r"conv\1.norm"),
]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and plain containers; a pickle that asks for more is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


class Checkpoint(NamedTuple):
    """A whole checkpoint of a run."""

    path: Path
    iterations: int
    """How many had been done."""
    skipped: list[str]
    """Newer ones that are not whole, and why."""


def newest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that is whole and has finite weights; None if there is none.

    Raises:
        BucketRankError: there are checkpoints, but none of them is.
    """
    found, skipped = [], []
    for path in run_dir.glob("model_*.pth"):
        if path.stem != BEST:
            try:
                found.append((_read(path, mmap=True)["iteration"], path))
            except _DAMAGED as error:
                skipped.append(f"{path.name} is damaged ({_first_line(error)})")
    for iteration, path in sorted(found, reverse=True):
        try:
            weights = _read(path)["model"]
        except _DAMAGED as error:
            skipped.append(f"{path.name} is damaged ({_first_line(error)})")
            continue
        if all_finite(weights):
            return Checkpoint(path, iteration + 1, skipped)
        skipped.append(f"{path.name} has weights that are not finite")
    if skipped:
        raise BucketRankError(
            f"No checkpoint in {run_dir} can be used: {'; '.join(skipped)}. Start again in another "
            "folder, or remove these files to start this run again from its first iteration."
        )
    return None


def chosen_checkpoint(run_dir: Path, which: str | None = None) -> Checkpoint | None:
    """The checkpoint of a run that is used after training; None if there is none.

    Args:
        which: "best", of the evaluation with the best AP, "last", see :func:`newest_checkpoint`;
            None: the best where there is one.

    Raises:
        BucketRankError: there is none that can be used.
    """
    path = run_dir / f"{BEST}.pth"
    if which != "last" and path.is_file():
        try:
            return Checkpoint(path, _read(path)["iteration"] + 1, [])
        except _DAMAGED as error:
            raise BucketRankError(
                f"{path} is damaged ({_first_line(error)}); --weights last takes the newest."
            ) from error
    if which == "best":
        raise BucketRankError(
            f"There is no {path.name} in {run_dir}: nothing was evaluated while it was trained "
            "(TEST.EVAL_PERIOD); --weights last takes the newest."
        )
    return newest_checkpoint(run_dir)


def all_finite(weights: dict[str, torch.Tensor]) -> bool:
    """Whether no number of a state dict is NaN or infinite."""
    return all(value.isfinite().all() for value in weights.values())


# What reading a file raises that is empty, cut off, or none of ours.
_DAMAGED = (RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError, pickle.PickleError)


def _read(path: Path, **how: Any) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True, **how)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Tell in a sentence what is wrong with the weights that the `with` statement loads."""
    try:
        yield
    except (FileNotFoundError, AssertionError) as error:
        raise BucketRankError(f"There are no weights at {path}: {error}") from error
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise BucketRankError(
            f"The weights {path} were not loaded, because they are no checkpoint, or hold more "
            f"than tensors and would run code from the file ({reason}); if you trust where "
            "they come from, re-save their state_dict with torch.save."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise BucketRankError(
            f"The weights {path} cannot be read: {(str(error) or 'no data').splitlines()[0]}"
        ) from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BucketRankError(
            f"The weights {path} are no checkpoint: they hold no tensors by parameter name."
        ) from error


def _load_tensors(filename: str) -> dict[str, Any]:
    if filename.endswith(".safetensors"):
        try:
            return load_file(filename)
        except SafetensorError as error:
            raise OSError(str(error)) from error
    return torch.load(filename, map_location="cpu", weights_only=True)


def read_tensors(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of any detector, by parameter name, without running its code.

    Raises:
        BucketRankError: see :meth:`SafeCheckpointer.load`.
    """
    with _told(path):
        content = _load_tensors(path)
        weights = content.get("state_dict", content.get("model", content))
        if not weights or not all(isinstance(each, torch.Tensor) for each in weights.values()):
            raise TypeError("no tensors")
        return dict(weights)


class SafeCheckpointer(DetectionCheckpointer):
    """:class:`DetectionCheckpointer` that runs no code from a checkpoint: tensors and arrays only.

    Reads its own format, those of Detectron2's, torchvision's, timm's and Swin's model zoos, and
    files of safetensors. Weights move between losses: a classifier with a background column
    (Detectron2's Faster R-CNN) loads into one without (ranking losses), ATSS and PAA with a quality
    branch into ones without, and the other way round.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """See :meth:`DetectionCheckpointer.save`; the file is there whole or not at all.

        Raises:
            FloatingPointError: a weight is NaN or infinite; on every process, if on one.
        """
        weights = self.model.state_dict()
        if not all_finite(weights):
            raise FloatingPointError("the weights are not finite any more; none were saved.")
        if not self.save_to_disk:
            return
        states = {key: each.state_dict() for key, each in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        with atomic_file(path) as file:
            torch.save({"model": weights, **states, **kwargs}, file)
        logger.info("Saved %s", path)
        if name != BEST:
            self.tag_last_checkpoint(path.name)  # for Detectron2's own tools

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """See :meth:`DetectionCheckpointer.tag_last_checkpoint`; written in one step."""
        write_atomically(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    @cached_property
    def _newest(self) -> Checkpoint | None:
        """The newest checkpoint when it is first asked for: what a resumed run starts from."""
        newest = newest_checkpoint(Path(self.save_dir))
        for reason in newest.skipped if newest else ():
            logger.warning("Skipped a checkpoint: %s", reason)
        return newest

    def has_checkpoint(self) -> bool:
        """See :meth:`DetectionCheckpointer.has_checkpoint`; `last_checkpoint` is not needed."""
        return self._newest is not None

    def get_checkpoint_file(self) -> str:
        """See :meth:`DetectionCheckpointer.get_checkpoint_file`."""
        return str(self._newest.path) if self._newest else ""

    def load(self, path: str, *args, **kwargs):
        """See :meth:`DetectionCheckpointer.load`.

        Raises:
            BucketRankError: the file is missing, damaged, or holds more than tensors and arrays.
        """
        try:
            with _told(path):
                return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None

    def load_all(self, path: str) -> None:
        """:meth:`load` the weights of a whole detector; BucketRankError if any are missing."""
        self.load(path, checkpointables=[])
        if self.unfitting:
            raise BucketRankError(
                f"The weights {path} are of another detector: {len(self.unfitting)} of its "
                f"parameters are missing or have another shape, such as {self.unfitting[0]}; use "
                "the config and the classes that they were trained with."
            )

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith(".pkl"):
            checkpoint = super()._load_file(filename)
            if of_timm := timm_weights(checkpoint["model"], self.model, filename):
                return {"model": of_timm, "backbone_only": True}
            weights = _backbone_weights(checkpoint["model"])
            return {"model": weights, "matching_heuristics": True} if weights else checkpoint
        with self.path_manager.open(filename, "rb") as file:
            data = _ArrayUnpickler(file, encoding="latin1").load()
        if "model" in data and "__author__" in data:
            return data
        # Caffe2's zoo: weights under "blobs", or bare; momentum beside them.
        weights = {k: v for k, v in data.get("blobs", data).items() if not k.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, filename: str) -> dict[str, Any]:
        return _load_tensors(filename)

    def _load_model(self, checkpoint: dict[str, Any]):
        adapt_background_column(checkpoint["model"], self.model.state_dict())
        add_quality_branch(checkpoint["model"], self.model.state_dict())
        incompatible = super()._load_model(checkpoint)
        shapes = [name for name, *_ in incompatible.incorrect_shapes]
        self.unfitting = [*incompatible.missing_keys, *shapes]
        if checkpoint.get("backbone_only"):
            incompatible.missing_keys.clear()  # the rest of the detector: nothing to warn of
        return incompatible


def _backbone_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """A ResNet of torchvision, or a Swin of its own model zoo, by names that Detectron2 matches.

    Empty for all other weights. Left out are the classifiers, the norm before Swin's, and Swin's
    masks, which fit one size of image only.
    """
    if "layers.0.blocks.0.attn.relative_position_bias_table" in weights:
        return {
            key: value
            for key, value in weights.items()
            if not key.startswith(("head.", "norm.")) and not key.endswith("attn_mask")
        }
    renamed = {}
    if "layer1.0.conv1.weight" in weights:
        for key, value in weights.items():
            if not key.startswith("fc."):
                key = key if key.startswith("layer") else f"stem.{key}"
                for pattern, replacement in _TORCHVISION_NAMES:
                    key = re.sub(pattern, replacement, key)
                renamed[key] = value
    return renamed


def adapt_background_column(weights: dict[str, Any], model: dict[str, torch.Tensor]) -> None:
    """Fit the box classifiers of `weights` to those of `model`, in place.

    Detectron2's softmax classifier has C classes and, last, a background column; the ranking heads
    have C sigmoid classes. Leaving the background column out after subtracting it keeps each
    class' log-odds against the background; adding a zero column does the same the other way.
    """
    for key, target in model.items():
        if "box_predictor" not in key or ".cls_score." not in key or key not in weights:
            continue
        source = torch.as_tensor(weights[key])
        if source.shape[1:] != target.shape[1:]:
            continue
        if len(source) == len(target) + 1:
            weights[key] = source[:-1] - source[-1:]
        elif len(source) == len(target) - 1:
            weights[key] = torch.cat([source, torch.zeros_like(source[:1])])


def add_quality_branch(weights: dict[str, Any], model: dict[str, torch.Tensor]) -> None:
    """Give the weights of an ATSS or PAA without a quality branch the one of `model`, in place.

    Its weights are zero, so that it leaves the order of the scores alone.
    """
    for key, target in model.items():
        head, is_branch, _ = key.partition("head.quality.")
        if is_branch and key not in weights and f"{head}head.cls_score.weight" in weights:
            weights[key] = torch.zeros_like(target)
