"""Pictures of a data set with its boxes and class names drawn in."""

import colorsys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from bucketed_ranking.data.registry import DatasetEntry
from bucketed_ranking.data.sieve import file_name
from bucketed_ranking.data.summary import load_clean
from bucketed_ranking.errors import BucketRankError

_SHORT_SIDE = 480
_FONT_SIZE = 15


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
    names = dict(zip(clean.category_ids, clean.class_names, strict=True))
    colors = {category: _color(index, len(names)) for index, category in enumerate(names)}
    per_image: dict[Any, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        per_image.setdefault(annotation["image_id"], []).append(annotation)
    images = [image for image in content["images"] if image["id"] in per_image]
    count = min(count, len(images))
    chosen = [images[index * len(images) // count] for index in range(count)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for image in chosen:
            source = file_name(image) or ""
            path = folder / f"{entry.name}-{Path(source).stem}.png"
            picture = _draw(entry.images / source, per_image[image["id"]], names, colors)
            picture.save(path)
            files.append(path)
    except OSError as error:
        raise BucketRankError(f"The pictures cannot be written to {folder}: {error}.") from error
    return files


def _draw(
    path: Path,
    annotations: list[dict[str, Any]],
    names: dict[int, str],
    colors: dict[int, tuple[int, int, int]],
) -> Image.Image:
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    scale = max(1.0, _SHORT_SIDE / min(picture.size))
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_FONT_SIZE)
    # Names last, so that no box crosses one; large boxes first, so that small ones stay visible.
    ordered = sorted(annotations, key=lambda a: -a["bbox"][2] * a["bbox"][3])
    for annotation in ordered:
        x, y, width, height = (value * scale for value in annotation["bbox"])
        pen.rectangle(
            (x, y, x + width, y + height), outline=colors[annotation["category_id"]], width=2
        )
    for annotation in ordered:
        name = names[annotation["category_id"]] + (" (crowd)" if annotation.get("iscrowd") else "")
        _label(pen, font, name, annotation, scale, picture.size, colors)
    return picture


def _label(
    pen: ImageDraw.ImageDraw,
    font: Any,
    name: str,
    annotation: dict[str, Any],
    scale: float,
    size: tuple[int, int],
    colors: dict[int, tuple[int, int, int]],
) -> None:
    """Writes a name on a patch of its colour above the box, or inside where there is no room."""
    _, _, width, height = pen.textbbox((0, 0), name, font=font)
    x, y = annotation["bbox"][0] * scale, annotation["bbox"][1] * scale
    x = min(max(x, 0), size[0] - width - 4)
    y = y - height - 2 if y >= height + 2 else y + 2
    color = colors[annotation["category_id"]]
    pen.rectangle((x, y, x + width + 4, y + height + 2), fill=color)
    dark = sum(weight * part for weight, part in zip((0.3, 0.59, 0.11), color, strict=True)) < 140
    pen.text((x + 2, y), name, font=font, fill="white" if dark else "black")


def _color(index: int, count: int) -> tuple[int, int, int]:
    """Distinct colours: hues around the circle, every second one darker."""
    red, green, blue = colorsys.hsv_to_rgb(index / max(1, count), 0.9, 1.0 - 0.3 * (index % 2))
    return round(255 * red), round(255 * green), round(255 * blue)
