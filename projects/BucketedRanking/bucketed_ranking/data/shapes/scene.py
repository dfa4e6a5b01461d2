"""Composes the scenes of the embedded data set: textured shapes on cluttered backgrounds."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .classes import SHAPES, WEIGHTS
from .drawing import (
    Patch,
    background,
    draw_bar,
    draw_distractor,
    paint,
    photograph,
    rasterise,
    texture,
)
from .sampling import UniformSampler

_SIDES = (160, 176, 192, 208, 224, 240, 256)
_MIN_KEPT_WHEN_PLACING = 0.5
_MIN_VISIBLE = 0.2
_MIN_AREA = 64
_SMALLEST_PIECE = 10


@dataclass
class SceneObject:
    """One annotated object: its class index and its visible pixels, bool [H, W]."""

    category: int
    mask: np.ndarray


def draw_scene(rng: UniformSampler) -> tuple[np.ndarray, list[SceneObject]]:
    """Draws one scene, which depends on the sampler's seed alone.

    Returns the picture, uint8 RGB [H, W, 3], and its objects, the hindmost first. Masks are modal,
    as in COCO: what an object hides, or the picture's edge cuts off, is not in the mask. An object
    of which less than a fifth, or fewer than 64 pixels, can be seen is left out, as clutter.
    """
    height, width = (_SIDES[rng.integer(0, len(_SIDES) - 1)] for _ in range(2))
    canvas = background(rng, height, width)
    for _ in range(rng.integer(2, 5)):
        draw_distractor(rng, canvas)

    owner = np.full((height, width), -1, np.int16)
    placed: list[tuple[int, int]] = []  # class indices and whole areas
    for _ in range(rng.integer(3, 8)):
        category = rng.pick(WEIGHTS)
        patch = _place(rng, category, owner, [area for _, area in placed])
        if patch is None:
            continue
        paint(canvas, patch, texture(rng, SHAPES[category], patch))
        owner[patch.rows, patch.columns][patch.solid] = len(placed)
        placed.append((category, patch.area))
        bar = draw_bar(rng, canvas) if rng.chance(0.08) else None
        if bar is not None:
            owner[bar.rows, bar.columns][bar.solid] = -1

    objects = []
    for index, (category, area) in enumerate(placed):
        mask = _without_specks(owner == index)
        if int(mask.sum()) >= max(_MIN_AREA, _MIN_VISIBLE * area):
            objects.append(SceneObject(category, mask))
    return photograph(rng, canvas), objects


def _place(rng: UniformSampler, category: int, owner: np.ndarray, areas: list[int]) -> Patch | None:
    """Finds a spot where most of the object is in the picture and hides no other one too much.

    ``owner`` [H, W] is the index of the object that each pixel shows, or -1; ``areas`` are those of
    the objects placed so far, nothing hidden. None if ten spots have been tried in vain.
    """
    height, width = owner.shape
    shape = SHAPES[category]
    for _ in range(10):
        radius = 0.5 * math.exp(rng.uniform(math.log(30), math.log(96)))
        center = rng.point(width, height)
        patch = rasterise(rng, shape.outline, center, radius, owner.shape, shape.turn)
        if patch is None or patch.solid.sum() < 0.75 * patch.area:
            continue
        below = owner[patch.rows, patch.columns]
        hidden = np.bincount(below[patch.solid & (below >= 0)], minlength=len(areas))
        if all(
            (owner == index).sum() - hidden[index] >= _MIN_KEPT_WHEN_PLACING * areas[index]
            for index in np.flatnonzero(hidden)
        ):
            return patch
    return None


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """The mask without pieces of fewer than ten pixels, which nobody would annotate."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] >= _SMALLEST_PIECE
    keep[0] = False
    return keep[labels]
