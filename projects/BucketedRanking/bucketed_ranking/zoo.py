"""The shipped configs: finding them by name, and what each holds; needs no Detectron2."""

import ast
import difflib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .environment import configs_root
from .errors import BucketRankError
from .published import PUBLISHED, PublishedRow

_SWINS = {96: "Swin-T", 192: "Swin-L"}
_TIMM_NAMES = {"tf_efficientnet_lite0": "EfficientNet-Lite0"}


def available_configs() -> dict[str, Path]:
    """Every shipped config by its name, bases left out.

    The name is the file's without its ending. Where several folders have a file of one name, it
    means that of COCO, and the others are called FOLDER/NAME, as in Detectron2's model zoo.
    """
    root = configs_root()
    paths = [path for path in sorted(root.rglob("*.yaml")) if not path.stem.startswith("Base-")]
    shared = Counter(path.stem for path in paths)
    return {
        path.stem
        if shared[path.stem] == 1 or path.parent.name.startswith("COCO-")
        else _zoo_name(path): path
        for path in paths
    }


def _zoo_name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def find_config(name: str) -> Path:
    """The config file that a user means: a path, or the name of a shipped config.

    A shipped config may also be given as FOLDER/NAME, with or without ".yaml".

    Raises:
        BucketRankError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    configs = available_configs()
    known = {**configs, **{_zoo_name(path): path for path in configs.values()}}
    wanted = name.removesuffix(".yaml")
    if wanted in known:
        return known[wanted]
    close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) or list(configs)
    raise BucketRankError(
        f"There is no config file and no shipped config called {name!r}; did you mean "
        f"{', '.join(close)}?"
    )


@dataclass(frozen=True)
class ConfigSummary:
    """What a shipped config trains, on what, how long, and what the paper reports of it.

    ``task`` is "boxes" or "masks", ``dataset`` a name for ``--dataset``, ``batch_size`` that of
    all devices together.
    """

    name: str
    path: Path
    task: str
    detector: str
    backbone: str
    dataset: str
    iterations: int
    batch_size: int
    published: tuple[PublishedRow, ...]


def list_configs() -> list[ConfigSummary]:
    """A summary of every shipped config."""
    return [_summarise(name, path) for name, path in available_configs().items()]


def _summarise(name: str, path: Path) -> ConfigSummary:
    """The recipe of ranking losses is left aside."""
    config = _read_with_bases(path)
    model, solver = config["MODEL"], config["SOLVER"]
    train = config["DATASETS"]["TRAIN"]
    (split,) = ast.literal_eval(train) if isinstance(train, str) else train
    return ConfigSummary(
        name=name,
        path=path,
        task="masks" if model.get("MASK_ON") else "boxes",
        detector=_detector(model),
        backbone=_backbone(model),
        dataset=split.removesuffix("_train"),
        iterations=solver["MAX_ITER"],
        batch_size=solver["IMS_PER_BATCH"],
        published=tuple(row for row in PUBLISHED if row.config == name),
    )


def _read_with_bases(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    base = config.pop("_BASE_", None)
    return _merged(_read_with_bases(path.parent / base), config) if base else config


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _detector(model: dict[str, Any]) -> str:
    if model["META_ARCHITECTURE"] == "CoDETR":
        plain = model.get("CODETR", {}).get("AUXILIARY_HEADS") == []
        return "Deformable DETR" if plain else "Co-DETR"
    if model["META_ARCHITECTURE"] != "GeneralizedRCNN":
        return model["META_ARCHITECTURE"]
    cascade = model["ROI_HEADS"]["NAME"] == "CascadeROIHeads"
    if model.get("MASK_ON"):
        return "Cascade Mask R-CNN" if cascade else "Mask R-CNN"
    return "Cascade R-CNN" if cascade else "Faster R-CNN"


def _backbone(model: dict[str, Any]) -> str:
    builder = model["BACKBONE"]["NAME"]
    if "small_resnet" in builder:
        return "small ResNet"
    if "swin" in builder:
        return _SWINS[model.get("SWIN", {}).get("EMBED_DIM", 96)]
    if "timm" in builder:
        name = model["TIMM"]["NAME"]
        return _TIMM_NAMES.get(name, name)
    resnets = model["RESNETS"]
    deformable = any(resnets.get("DEFORM_ON_PER_STAGE", []))
    return f"R-{resnets['DEPTH']}{'-DCN' if deformable else ''}"
