"""The embedded data set: generated on first use, in COCO format, the same on every run.

Classes, long tail and difficulty are those of ``scenes``. The version stands in the folder's name
and in the JSON; it changes whenever a picture or an annotation does, so numbers measured on one
version are never mistaken for those of another.
"""

import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bucketed_ranking.data.files import cache_folder
from bucketed_ranking.data.scenes import CLASSES, Dice, SceneObject, draw_scene
from bucketed_ranking.errors import BucketRankError

logger = logging.getLogger(__name__)

VERSION = 2
SEED = 20240
NUM_TRAIN = 800
NUM_VAL = 200

_JPEG_QUALITY = 92
_TRACING_SCALE = 4
_SMALLEST_HOLE = 12


def shapes_folder(
    root: Path | str | None = None, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL
) -> Path:
    """Where the data set of these sizes lies, whether or not it has been made."""
    if root is None:
        root = cache_folder()
    name = f"shapes-v{VERSION}"
    if (num_train, num_val) != (NUM_TRAIN, NUM_VAL):
        name += f"-{num_train}-{num_val}"
    return Path(root) / name


def ensure_shapes(
    root: Path | str | None = None, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL
) -> Path:
    """Makes the data set if it is not there yet, and returns its folder.

    The folder holds ``annotations/instances_{train,val}.json`` and the pictures in ``train/`` and
    ``val/``. Picture i of a split does not depend on how many there are. The folder is made beside
    its place and renamed at the end: it is either complete or absent, also when several processes
    make it at once.

    Args:
        root: the folder to put it into; by default the cache folder.
        num_train: number of training pictures.
        num_val: number of validation pictures.

    Raises:
        BucketRankError: if the numbers are not positive or the folder cannot be written.
    """
    if num_train < 1 or num_val < 1:
        raise BucketRankError(
            f"The shapes data set needs at least one picture in each split, not {num_train} "
            f"for training and {num_val} for validation."
        )
    folder = shapes_folder(root, num_train, num_val)
    sizes = {"train": num_train, "val": num_val}
    if _complete(folder, sizes):
        return folder
    started = time.perf_counter()
    # A warning, because that is what a user sees who has set up no logging and now has to wait.
    logger.warning("Making the shapes data set in %s (once; half a minute)", folder)
    try:
        _make(folder, sizes)
    except OSError as error:
        raise BucketRankError(
            f"The shapes data set cannot be written to {folder}: {error}. Free some space or set "
            "BUCKETRANK_HOME to a folder that can be written."
        ) from error
    logger.info("Made the shapes data set in %.0f s", time.perf_counter() - started)
    return folder


def annotations_file(folder: Path, split: str) -> Path:
    """The JSON of a split (``train`` or ``val``) in a data set folder."""
    return folder / "annotations" / f"instances_{split}.json"


def _complete(folder: Path, sizes: dict[str, int]) -> bool:
    for split, size in sizes.items():
        images = folder / split
        if not annotations_file(folder, split).is_file() or not images.is_dir():
            return False
        if len(os.listdir(images)) != size:
            return False
    return True


def _make(folder: Path, sizes: dict[str, int]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for split, size in sizes.items():
            _make_split(made, split, size)
        made.chmod(0o755)
        _put_in_place(made, folder, sizes)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Removes what runs left behind that were killed an hour ago or earlier."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        try:
            if time.time() - left.stat().st_mtime > 3600:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:  # another process was quicker
            continue


def _put_in_place(made: Path, folder: Path, sizes: dict[str, int]) -> None:
    """Renames the finished folder, unless another process was first; replaces a damaged one."""
    try:
        made.rename(folder)
    except OSError:
        if _complete(folder, sizes):
            return
        damaged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            folder.rename(damaged / "damaged")
            made.rename(folder)
        finally:
            shutil.rmtree(damaged, ignore_errors=True)


def _make_split(folder: Path, split: str, size: int) -> None:
    images_folder = folder / split
    images_folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(size):
        picture, objects = draw_scene(Dice(SEED, VERSION, split == "val", index))
        name = f"{index:06d}.jpg"
        bgr = np.ascontiguousarray(picture[..., ::-1])
        _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        (images_folder / name).write_bytes(encoded.tobytes())
        height, width = picture.shape[:2]
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for scene_object in objects:
            annotations.append(_annotation(scene_object, len(annotations) + 1, index + 1))
    content = {
        "info": {
            "description": "bucketrank shapes: generated, textured shapes on cluttered backgrounds",
            "version": str(VERSION),
            "split": split,
        },
        "licenses": [{"id": 1, "name": "Apache-2.0"}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "images": images,
        "annotations": annotations,
    }
    path = annotations_file(folder, split)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def _annotation(scene_object: SceneObject, annotation_id: int, image_id: int) -> dict[str, Any]:
    """COCO annotation of the visible pixels; the box encloses them exactly, in XYWH pixels."""
    rows = np.flatnonzero(scene_object.mask.any(1))
    columns = np.flatnonzero(scene_object.mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    width, height = int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y
    crop = scene_object.mask[y : y + height, x : x + width]
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": scene_object.category + 1,
        "bbox": [x, y, width, height],
        "area": int(scene_object.mask.sum()),
        "iscrowd": 0,
        "segmentation": trace_polygons(crop, x, y),
    }


def trace_polygons(mask: np.ndarray, x: int, y: int) -> list[list[float]]:
    """Polygons that cover a mask, flattened [x1, y1, x2, ...] in picture coordinates.

    They run along the pixels' outer edges, where COCO's polygons run (OpenCV's own contours join
    pixel centres and lose half a pixel all round), simplified by less than half a pixel. A polygon
    cannot have a hole, so a mask with one is cut in two through the hole.

    Args:
        mask: bool [h, w].
        x, y: where the mask's corner lies in the picture, in pixels.
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
