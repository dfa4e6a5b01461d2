"""Writes scenes as a data set in COCO format."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from . import SEED, VERSION, annotations_file
from .classes import CLASS_NAMES
from .sampling import UniformSampler
from .scene import SceneObject, draw_scene

_JPEG_QUALITY = 92
_TRACING_SCALE = 4
_SMALLEST_HOLE = 12


def write_split(folder: Path, split: str, size: int) -> None:
    """Draws the first ``size`` pictures of a split (``train`` or ``val``) into a data set's folder.

    Writes them as JPEG into a folder of the split's name, and their annotations as COCO JSON.
    """
    (folder / split).mkdir(parents=True)
    json_file = annotations_file(folder, split)
    json_file.parent.mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(size):
        picture, objects = draw_scene(UniformSampler(SEED, VERSION, split == "val", index))
        name = f"{index:06d}.jpg"
        bgr = np.ascontiguousarray(picture[..., ::-1])
        _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        (folder / split / name).write_bytes(encoded.tobytes())
        height, width = picture.shape[:2]
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for shown in objects:
            annotations.append(_annotation(shown, len(annotations) + 1, index + 1))
    content = {
        "info": {
            "description": "bucketrank shapes: generated, textured shapes on cluttered backgrounds",
            "version": str(VERSION),
            "split": split,
        },
        "licenses": [{"id": 1, "name": "Apache-2.0"}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)],
        "images": images,
        "annotations": annotations,
    }
    json_file.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def _annotation(shown: SceneObject, annotation_id: int, image_id: int) -> dict[str, Any]:
    """COCO annotation of the visible pixels; the box encloses them exactly, in XYWH pixels."""
    x, y, width, height = cv2.boundingRect(shown.mask.astype(np.uint8))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": shown.category + 1,
        "bbox": [x, y, width, height],
        "area": int(shown.mask.sum()),
        "iscrowd": 0,
        "segmentation": trace_polygons(shown.mask[y : y + height, x : x + width], x, y),
    }


def trace_polygons(mask: np.ndarray, x: int, y: int) -> list[list[float]]:
    """Polygons that cover a mask, flattened [x1, y1, x2, ...] in picture coordinates.

    They run along the pixels' outer edges, where COCO's polygons run (OpenCV's own contours join
    pixel centres and lose half a pixel all round), simplified by less than half a pixel. A polygon
    cannot have a hole, so a mask with one is cut in two through the hole. The mask, bool [h, w],
    has its corner at (x, y) in the picture.
    """
    scale = _TRACING_SCALE
    fine = mask.astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    contours, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True):
        if parent >= 0:
            if cv2.contourArea(contour) < _SMALLEST_HOLE * scale * scale:
                continue
            _, top, _, height = cv2.boundingRect(contour)
            row = (top + height // 2) // scale
            return trace_polygons(mask[:row], x, y) + trace_polygons(mask[row:], x, y + row)
        simple = cv2.approxPolyDP(contour, 0.4 * scale, True)[:, 0]
        if len(simple) >= 3:
            polygons.append(np.round((simple + 0.5) / scale + (x, y), 2).ravel().tolist())
    return polygons
