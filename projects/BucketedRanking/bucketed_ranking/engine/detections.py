"""What a detector finds in a picture, as arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.draw import LabelledBox, draw_boxes, draw_masks
from ..data.images import UnreadableImageError, eight_bits, read_picture
from ..errors import BucketRankError

if TYPE_CHECKING:
    import supervision
    from detectron2.structures import Instances


@dataclass(frozen=True)
class Detection:
    """One of :class:`Detections`."""

    box: np.ndarray
    class_index: int
    class_name: str
    score: float
    mask: np.ndarray | None = field(repr=False)


@dataclass(frozen=True, eq=False)
class Detections:
    """N objects in a picture of H x W pixels, highest score first.

    It has a length, and iterating gives each as a :class:`Detection`.
    """

    boxes: np.ndarray
    """Float32 [N, 4]: x0, y0, x1, y1 in pixels of the picture."""
    classes: np.ndarray
    """Int64 [N], indices of `all_class_names`."""
    scores: np.ndarray
    """Float64 [N]: how likely each is right, unless the scores of the model were asked for."""
    masks: np.ndarray | None = field(repr=False)
    """Bool [N, H, W]; None where the detector has none."""
    all_class_names: tuple[str, ...] = field(repr=False)
    """What the detector can find."""
    picture: Path | Image.Image = field(repr=False)
    """What they were found in; a file is read again when it is drawn."""

    @property
    def class_names(self) -> list[str]:
        """The names of `classes`, N."""
        return [self.all_class_names[index] for index in self.classes]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        masks = [None] * len(self) if self.masks is None else self.masks
        columns = self.boxes, self.classes.tolist(), self.class_names, self.scores.tolist(), masks
        return (Detection(*row) for row in zip(*columns, strict=True))

    def draw(self, short_side: int = 480) -> Image.Image:
        """The picture with boxes, class names, scores and masks, enlarged if it is smaller."""
        picture = as_picture(self.picture)
        count = len(self.all_class_names)
        if self.masks is not None:
            picture = draw_masks(picture, self.masks, self.classes.tolist(), count)
        boxes = [
            LabelledBox(
                x0, y0, x1 - x0, y1 - y0, each.class_index, f"{each.class_name} {each.score:.2f}"
            )
            for each, (x0, y0, x1, y1) in zip(self, self.boxes.tolist(), strict=True)
        ]
        return draw_boxes(picture, boxes, count, short_side)

    def to_supervision(self) -> "supervision.Detections":
        """The same as :class:`supervision.Detections`, with "class_name" in its data.

        Raises:
            BucketRankError: the package supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise BucketRankError(
                f"to_supervision() needs {error.name}, which is not installed: pip install "
                "supervision"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.classes,
            data={"class_name": np.array(self.class_names, dtype=str)},
        )


def as_picture(source: str | Path | np.ndarray | Image.Image) -> Image.Image:
    """A picture in 8 bits: of a file, turned as its EXIF orientation says, or of what is there.

    Args:
        source: an array is uint8, [H, W, 3] in the order RGB, [H, W, 4] RGBA or [H, W] grey.

    Raises:
        BucketRankError: the file cannot be read, or the source is none of these.
    """
    try:
        if isinstance(source, str | Path):
            return read_picture(source)
        image = Image.fromarray(source) if isinstance(source, np.ndarray) else source
        image.load()
        if 0 in image.size:
            raise TypeError("it has no pixels")
        return eight_bits(image)
    except (UnreadableImageError, OSError) as error:
        name = source if isinstance(source, str | Path) else "The picture"
        raise BucketRankError(f"{name} cannot be read: {error}.") from error
    except (AttributeError, TypeError) as error:
        kind = type(source).__name__
        if isinstance(source, np.ndarray):
            kind = f"an array {list(source.shape)} of {source.dtype}"
        raise BucketRankError(
            "A picture is a path, a PIL image, or an array of uint8, [H, W, 3] in the order RGB, "
            f"[H, W, 4] RGBA or [H, W] grey; this is {kind}."
        ) from error


def as_detections(
    instances: "Instances", class_names: Sequence[str], picture: Path | Image.Image
) -> Detections:
    """Detectron2's detections, on the CPU, as :class:`Detections`."""
    order = instances.scores.argsort(descending=True, stable=True)
    fields: dict[str, Any] = instances[order].get_fields()
    masks = fields.get("pred_masks")
    return Detections(
        boxes=fields["pred_boxes"].tensor.float().numpy(),
        classes=fields["pred_classes"].numpy(),
        scores=fields["scores"].double().numpy(),
        masks=None if masks is None else masks.numpy(),
        all_class_names=tuple(class_names),
        picture=picture,
    )
