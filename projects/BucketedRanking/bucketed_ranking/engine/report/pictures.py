"""The pictures in which a detector makes the most mistakes, drawn beside the truth."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ...data.draw import LabelledBox, draw_boxes
from ...data.images import UnreadableImageError, read_picture
from ...html_page import data_uri
from .errors import RIGHT, kinds_of
from .matches import Picture

COUNT = 6
# Pixels of the longer side in the report; draw_boxes enlarges what is much smaller.
_LONGEST = 720
_QUALITY = 82


def worst_pictures(
    pictures: Sequence[Picture],
    class_names: Sequence[str],
    threshold: float,
    probability: Callable[[np.ndarray], np.ndarray],
) -> list[dict[str, Any]]:
    """The pictures with the most wrong detections and missed objects from a score on.

    Args:
        probability: from the detector's scores to those that are written on the boxes.

    Returns:
        Of each: "name", "truth" and "found" (addresses of JPEGs inside the page), and "counts" in
        words. Pictures without a mistake, or that cannot be read any more, are left out.
    """
    mistakes = [
        int(kept.missed.sum() + (kept.match < 0).sum())
        for kept in (picture.kept(threshold) for picture in pictures)
    ]
    drawn = []
    for index in np.argsort(-np.array(mistakes, dtype=int), kind="stable"):
        if not mistakes[index] or len(drawn) == COUNT:
            break
        try:
            image = read_picture(pictures[index].path).convert("RGB")
        except UnreadableImageError:
            continue
        drawn.append(_draw(image, pictures[index].kept(threshold), class_names, probability))
    return drawn


def _draw(
    image: Image.Image,
    picture: Picture,
    class_names: Sequence[str],
    probability: Callable[[np.ndarray], np.ndarray],
) -> dict[str, Any]:
    kinds, _, _ = kinds_of(picture)
    missed = picture.missed
    longer = max(image.size)
    image.thumbnail((_LONGEST, _LONGEST))
    scale = max(image.size) / longer

    def drawn(boxes: np.ndarray, classes: np.ndarray, texts: list[str]) -> str:
        labelled = [
            LabelledBox(*(scale * box), int(index), f"{class_names[index]}{text}")
            for box, index, text in zip(boxes, classes, texts, strict=True)
        ]
        stream = io.BytesIO()
        draw_boxes(image, labelled, len(class_names)).save(stream, "JPEG", quality=_QUALITY)
        return data_uri(stream.getvalue(), "jpeg")

    scores = probability(picture.scores)
    found_texts = [
        f" {score:.2f}" if kind == RIGHT else f" {score:.2f} ✗ {kind}"
        for score, kind in zip(scores, kinds, strict=True)
    ]
    counts = Counter(kind for kind in kinds.tolist() if kind != RIGHT)
    words = [f"{missed.sum()} of {len(missed)} missed"]
    words += [f"{count} × {kind}" for kind, count in counts.most_common()]
    return {
        "name": picture.path.name,
        "truth": drawn(picture.boxes, picture.classes, [" ✗" if m else "" for m in missed]),
        "found": drawn(picture.found_boxes, picture.found_classes, found_texts),
        "counts": ", ".join(words),
    }
