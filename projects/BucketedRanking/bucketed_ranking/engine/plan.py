"""Training as people say it: epochs, batch, picture size and weights as keys of Detectron2."""

import math
import warnings

from detectron2.config import CfgNode

from ..errors import BucketRankError
from ..pretrained import PREFIX
from ..zoo import find_config

_EVALUATIONS = 10
SIZE_STEP = 32
"""Picture sizes that are chosen are multiples of it."""


def plan_training(
    cfg: CfgNode,
    num_images: int,
    *,
    epochs: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    lr: float | None = None,
) -> list[str]:
    """KEY VALUE pairs for what is given; what is left out stays as `cfg` has it.

    A schedule's steps keep their place in it, and its warm-up is that of the config or a tenth of
    it, whichever is shorter. With `epochs` there are ten evaluations and checkpoints, or one an
    epoch where these are fewer. Another batch sees as many pictures in all; its learning rate is
    that of the config times the ratio of the batches with SGD (Goyal et al., 2017), times its
    square root with AdamW (Malladi et al., NeurIPS 2022). Every picture size of the config scales
    with that of the test, which becomes `image_size`.

    Args:
        num_images: of the training data, one epoch.
        image_size: of the shorter side, in pixels.
        lr: learning rate; None: see above.
    """
    options = _schedule(cfg, num_images, epochs, batch_size)
    if image_size is not None:
        options += _picture_sizes(cfg, image_size)
    ratio = (batch_size or cfg.SOLVER.IMS_PER_BATCH) / cfg.SOLVER.IMS_PER_BATCH
    if lr is None and ratio != 1:
        lr = cfg.SOLVER.BASE_LR * (ratio if cfg.SOLVER.OPTIMIZER == "SGD" else math.sqrt(ratio))
    if lr is not None:
        options += ["SOLVER.BASE_LR", f"{lr:.6g}"]
    return options


def _schedule(
    cfg: CfgNode, num_images: int, epochs: float | None, batch_size: int | None
) -> list[str]:
    if epochs is None and batch_size is None:
        return []
    solver = cfg.SOLVER
    batch = batch_size or solver.IMS_PER_BATCH
    pictures = solver.MAX_ITER * solver.IMS_PER_BATCH if epochs is None else epochs * num_images
    iterations = max(1, math.ceil(pictures / batch))
    scale = iterations / solver.MAX_ITER
    steps = tuple(round(step * scale) for step in solver.STEPS if step < solver.MAX_ITER)
    options = [
        "SOLVER.IMS_PER_BATCH", str(batch),
        "SOLVER.MAX_ITER", str(iterations),
        "SOLVER.STEPS", str(steps),
        "SOLVER.WARMUP_ITERS", str(min(solver.WARMUP_ITERS, iterations // 10)),
    ]  # fmt: skip
    if epochs is not None:
        evaluate = save = math.ceil(iterations / max(1, min(_EVALUATIONS, int(epochs))))
    else:
        evaluate, save = (
            math.ceil(period * scale) for period in (cfg.TEST.EVAL_PERIOD, solver.CHECKPOINT_PERIOD)
        )
    return [*options, "TEST.EVAL_PERIOD", str(evaluate), "SOLVER.CHECKPOINT_PERIOD", str(save)]


def _picture_sizes(cfg: CfgNode, image_size: int) -> list[str]:
    given = cfg.INPUT
    scale = image_size / given.MIN_SIZE_TEST

    def scaled(size: int) -> int:
        return max(SIZE_STEP, round(size * scale / SIZE_STEP) * SIZE_STEP)

    sizes = tuple(dict.fromkeys(scaled(size) for size in given.MIN_SIZE_TRAIN))
    return [
        "INPUT.MIN_SIZE_TRAIN", str(sizes),
        "INPUT.MAX_SIZE_TRAIN", str(scaled(given.MAX_SIZE_TRAIN)),
        "INPUT.MIN_SIZE_TEST", str(image_size),
        "INPUT.MAX_SIZE_TEST", str(scaled(given.MAX_SIZE_TEST)),
    ]  # fmt: skip


def plan_weights(cfg: CfgNode, config: str, weights: str) -> list[str]:
    """KEY VALUE pairs for "imagenet", "coco" (Detectron2's model zoo), "none", or a file or URL.

    "none" also frees what only makes sense with weights: frozen stages and batch norms.

    Raises:
        BucketRankError: there are no such weights for this config.
    """
    timm = "timm" in cfg.MODEL.BACKBONE.NAME
    if weights == "none":
        free = ["MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0"]
        if timm:
            return [*free, "MODEL.TIMM.FREEZE_BN", "False"]
        return [*free, "MODEL.RESNETS.NORM", "BN"] if cfg.MODEL.RESNETS.NORM == "FrozenBN" else free
    if weights == "coco":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it is imported by pkg_resources
            from detectron2 import model_zoo

        path = find_config(config)
        try:
            url = model_zoo.get_checkpoint_url(f"{path.parent.name}/{path.name}")
        except RuntimeError as error:
            raise BucketRankError(
                f"Detectron2's model zoo has no detector like {path.stem}; take --weights "
                "imagenet, or the file or URL of a checkpoint."
            ) from error
        return ["MODEL.WEIGHTS", url]
    if weights != "imagenet":
        return ["MODEL.WEIGHTS", weights]
    if timm:
        return ["MODEL.WEIGHTS", f"{PREFIX}{cfg.MODEL.TIMM.NAME}"]
    if not cfg.MODEL.WEIGHTS:
        raise BucketRankError(
            "The backbone of this config has no ImageNet weights; the configs in Light/ have, such "
            "as retinanet_lite0_FPN."
        )
    return ["MODEL.WEIGHTS", cfg.MODEL.WEIGHTS]
