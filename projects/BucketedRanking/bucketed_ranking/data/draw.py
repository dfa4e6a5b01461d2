"""Pictures with boxes, masks and class names drawn in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageColor, ImageFont
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from ..errors import BucketRankError
from .entries import DatasetEntry
from .fields import file_name
from .images import UnreadableImageError, read_picture
from .summary import load_clean

_FONT = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
_FONT_SIZE = 14
_MASK_OPACITY = 0.43


class LabelledBox(NamedTuple):
    """A box to draw, in pixels of the picture as it is."""

    x: float
    y: float
    width: float
    height: float
    class_index: int
    text: str


def draw_pictures(entry: DatasetEntry, count: int, folder: Path) -> list[Path]:
    """Draws ``count`` pictures, spread evenly over those that have boxes; returns the PNG files.

    Small pictures are enlarged so that the class names can be read. Files in ``folder`` that have
    the same name are replaced.

    Raises:
        BucketRankError: if the data set is not usable or the folder cannot be written.
    """
    content, info = load_clean(entry)
    indices = {category: index for index, category in enumerate(info.category_ids)}
    per_image: dict[Any, list[LabelledBox]] = {}
    for annotation in content["annotations"]:
        index = indices[annotation["category_id"]]
        crowd = " (crowd)" if annotation.get("iscrowd") else ""
        box = LabelledBox(*annotation["bbox"], index, info.class_names[index] + crowd)
        per_image.setdefault(annotation["image_id"], []).append(box)
    images = [image for image in content["images"] if image["id"] in per_image]
    count = min(count, len(images))
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for image in (images[index * len(images) // count] for index in range(count)):
            source = file_name(image) or ""
            picture = read_picture(entry.images / source)
            files.append(folder / f"{entry.name}-{Path(source).stem}.png")
            draw_boxes(picture, per_image[image["id"]], info.num_classes).save(files[-1])
    except UnreadableImageError as error:
        raise BucketRankError(f"The picture {source} cannot be drawn: {error}.") from error
    except OSError as error:
        raise BucketRankError(f"The pictures cannot be written to {folder}: {error}.") from error
    return files


def draw_boxes(
    picture: Image.Image, boxes: Sequence[LabelledBox], num_classes: int, short_side: int = 480
) -> Image.Image:
    """A copy of the picture, enlarged to ``short_side`` pixels if it is smaller, with the boxes."""
    scale = max(1.0, short_side / min(picture.size))
    drawn = picture.convert("RGB").resize(tuple(round(side * scale) for side in picture.size))
    if not boxes:
        return drawn
    # Large boxes first, so that small ones stay visible.
    boxes = sorted(boxes, key=lambda box: -box.width * box.height)
    corners = torch.tensor([[b.x, b.y, b.x + b.width, b.y + b.height] for b in boxes])
    corners = (scale * corners).round()
    colors = [_color(box.class_index, num_classes) for box in boxes]
    image = draw_bounding_boxes(pil_to_tensor(drawn), corners, colors=colors, width=2)
    # Texts in a second pass, so that no box crosses one: above the box, within the picture.
    font = ImageFont.truetype(_FONT, _FONT_SIZE)
    texts = [box.text for box in boxes]
    ends = torch.tensor([font.getbbox(text)[2:] for text in texts])
    places = corners[:, :2] - torch.stack([torch.zeros(len(boxes)), ends[:, 1] + 2.0], 1)
    places = places.minimum(torch.tensor(drawn.size) - ends - 3).clamp(min=0)
    image = draw_bounding_boxes(
        image,
        places.repeat(1, 2),
        texts,
        colors=colors,
        width=0,
        font=_FONT,
        font_size=_FONT_SIZE,
        label_colors=["white" if ImageColor.getcolor(c, "L") < 140 else "black" for c in colors],
        fill_labels=True,
    )
    return to_pil_image(image)


def draw_masks(
    picture: Image.Image, masks: np.ndarray, classes: Sequence[int], num_classes: int
) -> Image.Image:
    """A copy of the picture with the masks, bool [N, H, W], half transparent in class colours."""
    image = pil_to_tensor(picture.convert("RGB"))
    # One by one: torchvision paints pixels black where masks of one call overlap.
    for mask, index in zip(torch.from_numpy(masks), classes, strict=True):
        color = _color(index, num_classes)
        image = draw_segmentation_masks(image, mask, alpha=_MASK_OPACITY, colors=color)
    return to_pil_image(image)


def _color(index: int, count: int) -> str:
    """Distinct colours: hues around the circle, every second one darker."""
    return f"hsv({360 * index // max(1, count)}, 90%, {100 - 30 * (index % 2)}%)"
