"""Whether an exported file finds in pictures what the detector finds."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import DatasetCatalog
from PIL import Image

from ..errors import BucketRankError
from .inference import TrainedDetector, detect, register_of_run
from .mapper import UNREADABLE, read_image

_PICTURES = 3
# Pixels; of a large picture, in which rounding weighs more, the second times its longer side.
_BOX_TOLERANCE, _RELATIVE_TOLERANCE = 1e-3, 1e-6
_SCORE_TOLERANCE = 1e-4
_MASK_TOLERANCE = 1e-3
# Of detections whose scores or overlaps are equal but for rounding, another one may be kept.
_MAY_DIFFER = 0.05

Found = Sequence[np.ndarray]
"""Boxes, scores, classes and, from a detector of masks, masks, as a file's outputs are."""


@dataclass(frozen=True)
class Agreement:
    """How close an exported file is to the detector."""

    sizes: list[tuple[int, int]]
    """Height and width of each picture."""
    detections: int
    """How many the detector gives in all pictures."""
    same: int
    """How many of them the file gives too."""
    box_error: float
    """The largest distance of two corners, in pixels."""
    score_error: float

    def describe(self) -> str:
        sizes = ", ".join(f"{height} x {width}" for height, width in self.sizes)
        return (
            f"{self.same} of {self.detections} detections in pictures of {sizes} are the same, "
            f"boxes within {self.box_error:.1g} pixels, scores within {self.score_error:.1g}"
        )


def check_pictures(
    detector: TrainedDetector, image_size: tuple[int, int] | None
) -> list[np.ndarray]:
    """Three pictures, RGB uint8 [H, W, 3]: of the run's validation data, else of noise.

    All of `image_size`, or each of another size.
    """
    pictures = _validation_pictures(detector)
    if not pictures:
        noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        pictures = [Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)]
    pictures = (pictures * _PICTURES)[:_PICTURES]
    if image_size:
        height, width = image_size
        sizes = [(width, height)] * _PICTURES
    else:
        # Its own, one that is high and one that is narrow: what is not traced would show.
        width, height = pictures[0].size
        sizes = [(width, height), (height * 2 // 3 + 1, width), (width, height // 2 + 3)]
    return [np.array(p.resize(size)) for p, size in zip(pictures, sizes, strict=True)]


def _validation_pictures(detector: TrainedDetector) -> list[Image.Image]:
    """The first of them; none where the data are not there any more, or cannot be read."""
    if detector.run_dir is None:
        return []
    name = detector.cfg.DATASETS.TEST[0]
    try:
        register_of_run(detector.record, name)
        files = [record["file_name"] for record in DatasetCatalog.get(name)[:_PICTURES]]
        return [Image.fromarray(read_image(file, format="RGB")) for file in files]
    except (BucketRankError, *UNREADABLE):
        return []


def agreement(
    detector: TrainedDetector, run: Callable[[np.ndarray], Found], pictures: Sequence[np.ndarray]
) -> Agreement:
    """Compare what a file finds in pictures (RGB, uint8 [H, W, 3]) with what `detect` does.

    Raises:
        BucketRankError: it finds something else, or fails.
    """
    sizes = [picture.shape[:2] for picture in pictures]
    hint = "; some detectors can be exported for one size of pictures alone, with --image-size HxW"
    end = f"nothing was written{hint if len(set(sizes)) > 1 else ''}."
    detections = same = 0
    errors = [(0.0, 0.0)]
    for picture in pictures:
        height, width = picture.shape[:2]
        flip = detector.cfg.INPUT.FORMAT == "BGR"
        instances = detect(detector, picture[:, :, ::-1] if flip else picture)
        fields = (instances.pred_boxes.tensor, instances.scores, instances.pred_classes)
        if instances.has("pred_masks"):
            fields = (*fields, instances.pred_masks)
        expected = [field.numpy() for field in fields]
        tolerance = max(_BOX_TOLERANCE, _RELATIVE_TOLERANCE * max(height, width))
        no_good = f"The exported file is no good: in a picture of {height} x {width} pixels it"
        try:
            found = run(picture)
        except RuntimeError as error:
            reason = textwrap.shorten(str(error), 150, placeholder=" ...")
            raise BucketRankError(f"{no_good} fails ({reason}); {end}") from error
        pairs = matching_detections(found, expected, tolerance)
        if min(len(pairs) - (1 - _MAY_DIFFER) * len(each[0]) for each in (found, expected)) < 0:
            raise BucketRankError(
                f"{no_good} finds {len(found[0])} objects, the detector {len(expected[0])}, and "
                f"only {len(pairs)} of them are the same; {end}"
            )
        detections, same = detections + len(expected[0]), same + len(pairs)
        errors += [
            (float(np.abs(found[0][i] - expected[0][j]).max()), abs(found[1][i] - expected[1][j]))
            for i, j in pairs
        ]
    box_error, score_error = (float(max(each)) for each in zip(*errors, strict=True))
    return Agreement(sizes, detections, same, box_error, score_error)


def matching_detections(
    found: Found, expected: Found, box_tolerance: float
) -> list[tuple[int, int]]:
    """Pairs of equal detections, as indices; each is in one pair at most."""
    left = list(range(len(expected[0])))
    pairs = []
    for i in range(len(found[0])):
        equal = (
            (np.abs(expected[0][left] - found[0][i]).max(axis=1) <= box_tolerance)
            & (np.abs(expected[1][left] - found[1][i]) <= _SCORE_TOLERANCE)
            & (expected[2][left] == found[2][i])
        )
        for position in np.flatnonzero(equal):
            j = left[position]
            if len(found) < 4 or np.mean(found[3][i] != expected[3][j]) <= _MASK_TOLERANCE:
                pairs.append((i, j))
                left.pop(position)
                break
    return pairs
