"""Which shipped config suits a data set and a machine, where the user names none."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..data.catalog import register
from ..data.registry import find_dataset
from ..data.summary import load_clean
from .plan import SIZE_STEP

# Pictures that a training on a CPU sees in all, and the least number of epochs.
_PICTURES_ON_CPU, _LEAST_EPOCHS = 4800, 3
# From here on a ResNet-50 at full size is worth its time, on GPUs with so much memory together.
_MANY_PICTURES, _MUCH_MEMORY = 5000, 20 * 2**30
_FULL_EPOCHS = 12  # the papers' schedule
# Objects should be so long (the square root of their area) in the resized picture: two cells of the
# finest level, of stride 8. A tenth of them may be smaller.
_OBJECT_LENGTH, _SMALLER = 16, 0.1
_SIZES = (320, 640)
_OF_BUILTIN = {
    "lvis": "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
    "cityscapes_instance": "Cityscapes/mask_rcnn_R_50_FPN",
}


@dataclass(frozen=True)
class Choice:
    """A config, the size of pictures and the epochs for it (None: the config's own), and why."""

    config: str
    image_size: int | None
    epochs: int | None
    reasons: tuple[str, ...]


def choose_config(train: str, device: str) -> Choice:
    """Choose a config by what the objects of a data set have, its pictures, and the device.

    Args:
        train: name of the training data.
        device: see :func:`choose_device`.

    Raises:
        BucketRankError: see :func:`register`.
    """
    info = register(train)
    if info.evaluator in _OF_BUILTIN:
        reason = "it is evaluated by its own measure, of masks"
        return Choice(_OF_BUILTIN[info.evaluator], None, None, (reason,))
    kind = "mask_rcnn" if info.has_masks else "retinanet"
    reasons = [
        "every object has a mask"
        if info.has_masks
        else "its objects have boxes, not all have masks"
    ]
    on_gpu = device.startswith("cuda")
    memory = _gpu_memory() if on_gpu else 0
    if info.num_images >= _MANY_PICTURES and memory >= _MUCH_MEMORY:
        reasons.append(f"{info.num_images} pictures, and {memory / 2**30:.0f} GiB on GPUs")
        return Choice(f"{kind}_R_50_FPN_1x", None, _FULL_EPOCHS, tuple(reasons))
    size, why = _image_size(train)
    reasons += [f"a light detector for {info.num_images} pictures on {device}", why]
    epochs = None
    if not on_gpu:
        epochs = max(_LEAST_EPOCHS, round(_PICTURES_ON_CPU / info.num_images))
        reasons.append(f"about {epochs * info.num_images} pictures are to be seen")
    return Choice(f"{kind}_lite0_FPN", size, epochs, tuple(reasons))


def _image_size(train: str) -> tuple[int, str]:
    """The shorter side to which pictures are resized, in pixels, and why."""
    content, _ = load_clean(find_dataset(train))
    sides = {image["id"]: min(image["width"], image["height"]) for image in content["images"]}
    lengths = [
        math.sqrt(each["area"]) / sides[each["image_id"]]
        for each in content["annotations"]
        if not each.get("iscrowd")
    ]
    own = _rounded(float(np.median(list(sides.values()))))
    low, high = (min(bound, own) for bound in _SIZES)
    if not lengths:
        return high, "no object says how large pictures must be"
    small = float(np.quantile(lengths, _SMALLER))
    size = max(low, min(high, _rounded(_OBJECT_LENGTH / small)))
    return size, f"nine objects of ten are at least {size * small:.0f} pixels long at {size}"


def _rounded(size: float) -> int:
    return max(SIZE_STEP, math.ceil(size / SIZE_STEP) * SIZE_STEP)


def _gpu_memory() -> int:
    """Bytes of all GPUs together."""
    devices = range(torch.cuda.device_count())
    return sum(torch.cuda.get_device_properties(device).total_memory for device in devices)
