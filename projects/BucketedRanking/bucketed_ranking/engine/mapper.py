"""Pictures as training, evaluation and prediction read them."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data.detection_utils import SizeMismatchError, convert_PIL_to_numpy

from ..data.images import UnreadableImageError, read_picture

# What a mapper raises for a damaged or exchanged picture file.
UNREADABLE = (UnreadableImageError, SizeMismatchError, OSError)


def read_image(path: Path | str, format: str | None = None) -> np.ndarray:
    """Detectron2's function of this name, by way of :func:`read_picture`: uint8 [H, W, C].

    Raises:
        UnreadableImageError: see :func:`read_picture`.
    """
    return convert_PIL_to_numpy(read_picture(path), format)


class PictureMapper(DatasetMapper):
    """:class:`DatasetMapper` that reads pictures by :func:`read_image`."""

    def __call__(self, dataset_dict: dict) -> dict:
        with patch.object(detection_utils, "read_image", read_image):
            return super().__call__(dataset_dict)


class EvaluationMapper(PictureMapper):
    """:class:`PictureMapper` that stops no evaluation for a picture that cannot be read.

    It gives a black one for it, and says why under "unreadable"; evaluators leave it out.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg, is_train=False)
        self.channels = len(cfg.MODEL.PIXEL_MEAN)

    def __call__(self, dataset_dict: dict) -> dict:
        try:
            return super().__call__(dataset_dict)
        except UNREADABLE as error:
            size = (dataset_dict["height"], dataset_dict["width"], self.channels)
            black = np.zeros(size, dtype=np.uint8)
            with patch.object(detection_utils, "read_image", lambda *_, **__: black):
                image = DatasetMapper.__call__(self, dataset_dict)
            return {**image, "unreadable": str(error)}
