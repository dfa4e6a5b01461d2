"""Build the Detectron2 config of a run from a config name, a loss and a data set."""

import difflib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from fvcore.common.registry import Registry

from ..config import SCORE_LOSS, add_bucketed_ranking_config, apply_ranking_recipe
from ..data.catalog import DatasetInfo, register, require_masks, require_same_classes
from ..data.registry import split_names
from ..environment import choose_device
from ..errors import BucketRankError
from ..losses import LOSS_NAMES, QUALITY_LOSSES
from ..pretrained import describe_weights
from ..zoo import find_config

_MISFITS = (KeyError, ValueError, AssertionError, TypeError, AttributeError)
"""What merging a value that does not fit into a config raises."""

_FINITE = sys.float_info.max

_RANGES = {
    "DATALOADER.NUM_WORKERS": (0, 256),
    "DATALOADER.REPEAT_THRESHOLD": (0, math.inf),
    "INPUT.MAX_SIZE_TEST": (1, math.inf),
    "INPUT.MAX_SIZE_TRAIN": (1, math.inf),
    "INPUT.MIN_SIZE_TEST": (0, math.inf),
    "INPUT.MIN_SIZE_TRAIN": (0, math.inf),
    "MODEL.ATSS.TOPK": (1, math.inf),
    "MODEL.CODETR.AUXILIARY_LOSS_WEIGHT": (0, _FINITE),
    "MODEL.CODETR.CLASS_COST": (0, _FINITE),
    "MODEL.CODETR.CLASS_LOSS_WEIGHT": (0, _FINITE),
    "MODEL.CODETR.DECODER_LAYERS": (1, math.inf),
    "MODEL.CODETR.ENCODER_LAYERS": (1, math.inf),
    "MODEL.CODETR.FEEDFORWARD_DIM": (1, math.inf),
    "MODEL.CODETR.GIOU_COST": (0, _FINITE),
    "MODEL.CODETR.GIOU_LOSS_WEIGHT": (0, _FINITE),
    "MODEL.CODETR.HIDDEN_DIM": (32, math.inf),
    "MODEL.CODETR.L1_COST": (0, _FINITE),
    "MODEL.CODETR.L1_LOSS_WEIGHT": (0, _FINITE),
    "MODEL.CODETR.MAX_EXTRA_QUERIES": (0, math.inf),
    "MODEL.CODETR.NUM_HEADS": (1, math.inf),
    "MODEL.CODETR.NUM_LEVELS": (1, math.inf),
    "MODEL.CODETR.NUM_POINTS": (1, math.inf),
    "MODEL.CODETR.NUM_QUERIES": (1, math.inf),
    "MODEL.FPN.OUT_CHANNELS": (1, math.inf),
    "MODEL.PAA.TOPK": (1, math.inf),
    "MODEL.RANKING.BOX_LOSS_WEIGHT": (0, _FINITE),
    "MODEL.RANKING.CHUNK_SIZE": (1, math.inf),
    "MODEL.RANKING.DELTA": (0, _FINITE),
    "MODEL.RANKING.MAX_MASKS": (1, math.inf),
    "MODEL.RANKING.RPN_LOSS_WEIGHT": (0, _FINITE),
    "MODEL.SMALL_RESNET.CHANNELS": (1, math.inf),
    "SEED": (-1, 2**31 - 1),  # NumPy takes 32 bits, and processes count on from it
    "SOLVER.ACCUMULATE": (1, math.inf),
    "SOLVER.BASE_LR": (1e-12, _FINITE),  # schedules divide by it
    "SOLVER.CHECKPOINT_KEEP": (0, math.inf),
    "SOLVER.CHECKPOINT_PERIOD": (1, math.inf),
    "SOLVER.EMA_DECAY": (0, 1),
    "SOLVER.GAMMA": (0, _FINITE),
    "SOLVER.IMS_PER_BATCH": (1, math.inf),
    "SOLVER.MAX_ITER": (1, math.inf),
    "SOLVER.MAX_SKIPPED": (1, math.inf),
    "SOLVER.MOMENTUM": (0, 1),
    "SOLVER.PATIENCE": (0, math.inf),
    "SOLVER.STEPS": (0, math.inf),
    "SOLVER.WARMUP_FACTOR": (0, 1),
    "SOLVER.WARMUP_ITERS": (0, math.inf),
    "SOLVER.WEIGHT_DECAY": (0, _FINITE),
    "TEST.DETECTIONS_PER_IMAGE": (1, math.inf),
    "TEST.EVAL_PERIOD": (0, math.inf),
}
"""The least and the largest value of a key, or of each entry of a list."""

_CHOICES: dict[str, Registry | set[str]] = {
    "INPUT.FORMAT": {"BGR", "RGB", "L", "YUV-BT.601"},
    "INPUT.MASK_FORMAT": {"bitmask", "polygon"},
    "INPUT.RANDOM_FLIP": {"horizontal", "none", "vertical"},
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "SOLVER.LR_SCHEDULER_NAME": {
        "WarmupCosineLR", "WarmupMultiStepLR", "WarmupStepWithFixedGammaLR",
    },
    "SOLVER.ON_NAN": {"skip", "stop"},
    "SOLVER.OPTIMIZER": {"AdamW", "SGD"},
    "SOLVER.WARMUP_METHOD": {"constant", "linear"},
}  # fmt: skip
"""The names that a key takes; a registry's are known once the module of a detector is imported."""


def default_config() -> CfgNode:
    """Detectron2's default config with the keys of this project."""
    cfg = get_cfg()
    add_bucketed_ranking_config(cfg)
    return cfg


def load_config(
    config: str,
    *,
    loss: str | None = None,
    options: Sequence[str] = (),
    device: str | None = None,
) -> CfgNode:
    """Read a config, choose its loss, apply the ranking recipe, then the user's own options.

    The input of a timm backbone is set in between; see :func:`describe_timm_input`.

    Args:
        config: see :func:`find_config`.
        loss: a name of `LOSS_NAMES` or `QUALITY_LOSSES`, or "score"; None keeps the config's.
        options: KEY VALUE pairs, as on Detectron2's command lines; they override all else.
        device: see :func:`choose_device`.

    Raises:
        BucketRankError: an unknown config, loss, key or device, or a value of the wrong type or
            outside its range.
    """
    cfg = default_config()
    path = find_config(config)
    merge_file(cfg, path)
    if loss is not None:
        cfg.MODEL.RANKING.LOSS = loss
    # Twice: the options may choose the loss, and they override its recipe.
    merge_options(cfg, options)
    check_loss(cfg.MODEL.RANKING.LOSS)
    try:
        apply_ranking_recipe(cfg)
    except _MISFITS as error:
        raise BucketRankError(
            f"MODEL.RANKING.RECIPE of the config {path} does not fit: {_brief(error)}"
        ) from error
    describe_timm_input(cfg)
    merge_options(cfg, options)
    check_values(cfg)
    cfg.MODEL.DEVICE = choose_device(device)
    return cfg


def describe_timm_input(cfg: CfgNode) -> None:
    """Give a timm backbone the pictures that its weights know: RGB, by timm's mean and std.

    Of INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD those that still have Detectron2's
    default are set.

    Raises:
        BucketRankError: timm has no model MODEL.TIMM.NAME.
    """
    if "timm" not in cfg.MODEL.BACKBONE.NAME:
        return
    described, default = describe_weights(cfg.MODEL.TIMM.NAME), default_config()
    if default.INPUT.FORMAT == cfg.INPUT.FORMAT:
        cfg.INPUT.FORMAT = "RGB"
    if default.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_MEAN:
        cfg.MODEL.PIXEL_MEAN = [255.0 * value for value in described.mean]
    if default.MODEL.PIXEL_STD == cfg.MODEL.PIXEL_STD:
        cfg.MODEL.PIXEL_STD = [255.0 * value for value in described.std]


def merge_file(cfg: CfgNode, path: Path) -> None:
    """Merge a YAML file and its bases; BucketRankError if it is none, or no config."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not content:
            raise BucketRankError(f"The config {path} holds no keys, such as MODEL or SOLVER.")
        for key, value in content.items():
            if isinstance(cfg.get(key), CfgNode) and not isinstance(value, dict):
                raise BucketRankError(f"The config {path} has {key}: {value}, a key without keys.")
        # A YAML file can ask for code to be run; Detectron2 would do so.
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except RecursionError as error:
        raise BucketRankError(
            f"The config {path} cannot be read: it is nested too deeply, or is its own _BASE_."
        ) from error
    except (*_MISFITS, OSError, yaml.YAMLError) as error:
        raise BucketRankError(f"The config {path} cannot be read: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """The first line of an error, cut: fvcore shows whole sections of a config."""
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    line = text.partition("\n")[0]
    return line if len(line) <= 200 else f"{line[:200]}..."


def check_values(cfg: CfgNode) -> None:
    """Raise BucketRankError where a value would make a run hang, fail late or mean nothing."""
    known = flatten(cfg)
    for key, (low, high) in _RANGES.items():
        values = known[key] if isinstance(known[key], list | tuple) else [known[key]]
        for value in values:
            if value is not None and not (isinstance(value, int | float) and low <= value <= high):
                range_ = f"from {low} to {high}" if high < _FINITE else f"{low} or more"
                raise BucketRankError(f"{key} is {value!r}; it must be {range_}.")
    for key, choices in _CHOICES.items():
        names = dict(choices) if isinstance(choices, Registry) else choices
        if known[key] not in names:
            raise BucketRankError(
                f"{key} is {known[key]!r}; it must be one of {', '.join(sorted(names))}."
            )


def check_loss(loss: str) -> None:
    """Raise BucketRankError unless `loss` is "score" or the name of a ranking loss."""
    names = [SCORE_LOSS, *LOSS_NAMES, *QUALITY_LOSSES]
    if loss not in names:
        raise BucketRankError(
            f"There is no loss called {loss!r}; choose one of {', '.join(names)}."
        )


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Merge KEY VALUE pairs; BucketRankError if one is incomplete, unknown or of a wrong type."""
    if len(options) % 2:
        raise BucketRankError(
            f"Config options come in pairs KEY VALUE, but {len(options)} words were given: "
            f"{' '.join(options)}"
        )
    for key, value in zip(options[::2], options[1::2], strict=True):
        try:
            cfg.merge_from_list([key, value.strip()])
        except (KeyError, AssertionError) as error:
            close = difflib.get_close_matches(key, flatten(cfg), n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise BucketRankError(f"There is no config key {key!r}{hint}") from error
        except (*_MISFITS, RecursionError, MemoryError) as error:
            raise BucketRankError(
                f"The config key {key} cannot take {value!r}: {_brief(error)}"
            ) from error


def flatten(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    """The values of a config by their full keys, such as SOLVER.BASE_LR."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        nested = isinstance(value, CfgNode)
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def configure_datasets(cfg: CfgNode, train: str, val: str) -> tuple[DatasetInfo, DatasetInfo]:
    """Register the two data sets and set DATASETS and the number of classes.

    Raises:
        BucketRankError: a data set is unknown, empty or invalid; their classes differ; the data
            set is evaluated by masks and the detector predicts none; the detector learns masks
            and a data set has none.
    """
    train_info, val_info = register(train), register(val)
    require_same_classes(train_info, val_info)
    if cfg.MODEL.MASK_ON:
        require_masks(train_info)
        require_masks(val_info)
    elif val_info.evaluator == "cityscapes_instance":
        raise BucketRankError(
            f"'{val}' is evaluated by masks, which this detector does not predict; choose one that "
            "does, such as Cityscapes/mask_rcnn_R_50_FPN."
        )
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), (val,)
    set_num_classes(cfg, train_info.num_classes)
    return train_info, val_info


def set_num_classes(cfg: CfgNode, num_classes: int) -> None:
    """Set the number of classes of every head."""
    cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.CODETR.NUM_CLASSES = num_classes


def choose_datasets(
    cfg: CfgNode, dataset: str | None, train: str | None, val: str | None
) -> tuple[str, str]:
    """Names of the training and the validation data set; without arguments, those in `cfg`.

    Args:
        dataset: name of a pair of splits.
        train, val: names of two data sets, instead of `dataset`.

    Raises:
        BucketRankError: the arguments contradict each other, `dataset` has no two splits, or `cfg`
            names none or several.
    """
    if dataset is not None:
        if train is not None or val is not None:
            raise BucketRankError("Give either --dataset, or --train and --val, not both.")
        return split_names(dataset)
    if (train is None) != (val is None):
        raise BucketRankError(
            "--train and --val go together: one names the data set to train on, the other the one "
            "to evaluate on."
        )
    if train is not None and val is not None:
        return train, val
    return datasets_of(cfg)


def datasets_of(cfg: CfgNode) -> tuple[str, str]:
    """Names of the training and the validation data set; BucketRankError if not one of each."""
    for key in ("TRAIN", "TEST"):
        if len(names := cfg.DATASETS[key]) != 1:
            raise BucketRankError(
                f"DATASETS.{key} is {names!r}, but one data set is trained on and one evaluated "
                "on: choose them with --dataset, or with --train and --val."
            )
    return cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]


def default_output(config: str, cfg: CfgNode) -> Path:
    """Default output folder of a run: runs/CONFIG-LOSS-DATASET."""
    dataset = cfg.DATASETS.TRAIN[0].removesuffix("_train")
    return Path("runs") / f"{Path(config).stem}-{cfg.MODEL.RANKING.LOSS}-{dataset}"
