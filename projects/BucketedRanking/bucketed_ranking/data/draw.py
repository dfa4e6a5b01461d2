"""Pictures with boxes and texts drawn in."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from bucketed_ranking.data.registry import DatasetEntry
from bucketed_ranking.data.sieve import file_name
from bucketed_ranking.data.summary import load_clean
from bucketed_ranking.errors import BucketRankError

_FONT_SIZE = 15


class LabelledBox(NamedTuple):
    """A box to draw, in pixels of the picture as it is."""

    x: float
    y: float
    width: float
    height: float
    class_index: int
    text: str


def draw_pictures(entry: DatasetEntry, count: int, folder: Path) -> list[Path]:
    """Draws ``count`` pictures, spread evenly over those that have boxes, and saves them as PNG.

    Small pictures are enlarged so that the class names can be read. Files in ``folder`` that have
    the same name are replaced.

    Returns:
        the files written.

    Raises:
        BucketRankError: if the data set is not usable or the folder cannot be written.
    """
    content, clean = load_clean(entry)
    indices = {category: index for index, category in enumerate(clean.category_ids)}
    per_image: dict[Any, list[LabelledBox]] = {}
    for annotation in content["annotations"]:
        index = indices[annotation["category_id"]]
        crowd = " (crowd)" if annotation.get("iscrowd") else ""
        box = LabelledBox(*annotation["bbox"], index, clean.class_names[index] + crowd)
        per_image.setdefault(annotation["image_id"], []).append(box)
    images = [image for image in content["images"] if image["id"] in per_image]
    count = min(count, len(images))
    chosen = [images[index * len(images) // count] for index in range(count)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for image in chosen:
            source = file_name(image) or ""
            path = folder / f"{entry.name}-{Path(source).stem}.png"
            with Image.open(entry.images / source) as opened:
                picture = ImageOps.exif_transpose(opened)
            draw_boxes(picture, per_image[image["id"]], len(indices)).save(path)
            files.append(path)
    except OSError as error:
        raise BucketRankError(f"The pictures cannot be written to {folder}: {error}.") from error
    return files


def draw_boxes(
    picture: Image.Image, boxes: Sequence[LabelledBox], num_classes: int, short_side: int = 480
) -> Image.Image:
    """A copy of the picture, enlarged to ``short_side`` pixels if it is smaller, with the boxes."""
    scale = max(1.0, short_side / min(picture.size))
    drawn = picture.convert("RGB").resize(tuple(round(side * scale) for side in picture.size))
    pen = ImageDraw.Draw(drawn)
    # Texts last, so that no box crosses one; large boxes first, so that small ones stay visible.
    ordered = sorted(boxes, key=lambda box: -box.width * box.height)
    for box in ordered:
        corners = (box.x, box.y, box.x + box.width, box.y + box.height)
        color = _color(box.class_index, num_classes)
        pen.rectangle([scale * corner for corner in corners], outline=color, width=2)
    for box in ordered:
        _label(pen, box, scale, drawn.size, _color(box.class_index, num_classes))
    return drawn


def draw_masks(
    picture: Image.Image, masks: np.ndarray, classes: Sequence[int], num_classes: int
) -> Image.Image:
    """A copy of the picture with the masks, bool [N, H, W], half transparent in class colours."""
    drawn = picture.convert("RGB")
    for mask, index in zip(masks, classes, strict=True):
        drawn.paste(_color(index, num_classes), mask=Image.fromarray(mask.astype(np.uint8) * 110))
    return drawn


def _label(
    pen: ImageDraw.ImageDraw,
    box: LabelledBox,
    scale: float,
    size: tuple[int, int],
    color: tuple[int, int, int],
) -> None:
    """Writes a text on a patch of its colour above the box, or inside where there is no room."""
    font = ImageFont.load_default(_FONT_SIZE)
    _, _, width, height = pen.textbbox((0, 0), box.text, font=font)
    x, y = box.x * scale, box.y * scale
    x = min(max(x, 0), size[0] - width - 4)
    y = y - height - 2 if y >= height + 2 else y + 2
    pen.rectangle((x, y, x + width + 4, y + height + 2), fill=color)
    dark = sum(weight * part for weight, part in zip((0.3, 0.59, 0.11), color, strict=True)) < 140
    pen.text((x + 2, y), box.text, font=font, fill="white" if dark else "black")


def _color(index: int, count: int) -> tuple[int, int, int]:
    """Distinct colours: hues around the circle, every second one darker."""
    red, green, blue = colorsys.hsv_to_rgb(index / max(1, count), 0.9, 1.0 - 0.3 * (index % 2))
    return round(255 * red), round(255 * green), round(255 * blue)
