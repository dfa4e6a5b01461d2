"""Draws the scenes of the embedded data set: textured shapes on cluttered backgrounds.

A scene depends on its seed alone. Geometry is rounded to 1/16 px before it is rasterised and only
``Generator.random`` is drawn from, so masks (and with them the annotations) agree between machines;
pixel colours pass through floating point and may differ by a grey level from machine to machine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ("disc", "tile", "star", "ball", "gear", "crate", "flower", "arrow")
"""Most frequent first. Pairs alike in outline or colour: disc/ball, tile/crate, gear/flower."""

HEAD_TO_TAIL = 6.0
"""How many times more often the first class is drawn than the last; geometric in between."""

_HUES = {
    "disc": 0.00,
    "ball": 0.05,
    "tile": 0.60,
    "crate": 0.50,
    "gear": 0.75,
    "flower": 0.88,
    "star": 0.15,
    "arrow": 0.35,
}
_LIGHT_PATTERNS = ("disc", "ball", "gear", "arrow")
_SIDES = (160, 176, 192, 208, 224, 240, 256)
_SUPERSAMPLING = 4
_SUBPIXEL_BITS = 4
_MIN_KEPT_WHEN_PLACING = 0.5
_MIN_VISIBLE = 0.2
_MIN_AREA = 64


class Dice:
    """Random draws that need nothing but uniform numbers, so that they outlive numpy's versions."""

    def __init__(self, *seed: int):
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._generator.random())

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self._generator.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return float(self._generator.random()) < probability

    def pick(self, weights: np.ndarray) -> int:
        """An index, drawn in proportion to the weights."""
        cumulative = np.cumsum(weights)
        drawn = np.searchsorted(cumulative, self._generator.random() * cumulative[-1], "right")
        return min(int(drawn), len(weights) - 1)

    def field(self, *shape: int) -> np.ndarray:
        """Independent uniform numbers in [-1, 1), float32 of the given shape."""
        return (self._generator.random(shape) * 2 - 1).astype(np.float32)


@dataclass
class SceneObject:
    """One annotated object: its class (index into CLASSES) and its visible pixels, bool [H, W]."""

    category: int
    mask: np.ndarray


def class_weights() -> np.ndarray:
    """How often each class is drawn, relative to the first: float64 [len(CLASSES)]."""
    return HEAD_TO_TAIL ** (-np.arange(len(CLASSES)) / (len(CLASSES) - 1))


def draw_scene(dice: Dice) -> tuple[np.ndarray, list[SceneObject]]:
    """Draws one scene.

    Masks are modal, as in COCO: what an object hides, or the picture's edge cuts off, is not in the
    mask. An object of which less than a fifth, or fewer than 64 pixels, can be seen is dropped from
    the list and stays in the picture as clutter.

    Returns:
        the picture, uint8 RGB [H, W, 3], and its objects, the hindmost first.
    """
    height, width = (_SIDES[dice.integer(0, len(_SIDES) - 1)] for _ in range(2))
    canvas = _background(dice, height, width)
    for _ in range(dice.integer(2, 5)):
        _distractor(dice, canvas)

    owner = np.full((height, width), -1, np.int16)
    categories: list[int] = []
    full_areas: list[int] = []
    for _ in range(dice.integer(3, 8)):
        category = dice.pick(class_weights())
        placed = _place(dice, category, owner, full_areas)
        if placed is None:
            continue
        patch, area = placed
        _paint(canvas, patch, _texture(dice, CLASSES[category], patch))
        owner[patch.rows, patch.columns][patch.solid] = len(categories)
        categories.append(category)
        full_areas.append(area)
        if dice.chance(0.08):
            _bar_in_front(dice, canvas, owner)

    objects = []
    for index, (category, area) in enumerate(zip(categories, full_areas, strict=True)):
        mask = _without_specks(owner == index)
        visible = int(mask.sum())
        if visible >= max(_MIN_AREA, _MIN_VISIBLE * area):
            objects.append(SceneObject(category, mask))
    return _photograph(dice, canvas), objects


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """The mask without pieces of fewer than ten pixels, which nobody would annotate."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    crop = mask[y : y + height, x : x + width]
    if crop.size == 0:
        return mask
    _, labels, stats, _ = cv2.connectedComponentsWithStats(crop.astype(np.uint8), connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] >= 10
    keep[0] = False
    cleaned = np.zeros_like(mask)
    cleaned[y : y + height, x : x + width] = keep[labels]
    return cleaned


@dataclass
class _Patch:
    """A rasterised outline, cut to the picture: where it lies, its coverage and own coordinates.

    alpha is float32 [h, w] in 0..1, solid its pixels covered by half or more; u and v, float32
    [h, w], are -1..1 across the outline, along its own axes.
    """

    rows: slice
    columns: slice
    alpha: np.ndarray
    solid: np.ndarray
    u: np.ndarray
    v: np.ndarray
    radius: float


def _place(
    dice: Dice, category: int, owner: np.ndarray, full_areas: list[int]
) -> tuple[_Patch, int] | None:
    """Finds a spot where most of the object is in the picture and hides no other one too much."""
    height, width = owner.shape
    for _ in range(10):
        radius = 0.5 * math.exp(dice.uniform(math.log(30), math.log(96)))
        center = dice.uniform(0, width), dice.uniform(0, height)
        outline = _OUTLINES[CLASSES[category]]()
        patch, area = _rasterise(dice, outline, center, radius, owner.shape, _TURN[category])
        if patch is None or patch.solid.sum() < 0.75 * area:
            continue
        left = owner[patch.rows, patch.columns].copy()
        hidden = np.bincount(left[patch.solid & (left >= 0)], minlength=len(full_areas))
        for index in np.flatnonzero(hidden):
            seen = int((owner == index).sum()) - int(hidden[index])
            if seen < _MIN_KEPT_WHEN_PLACING * full_areas[index]:
                break
        else:
            return patch, area
    return None


def _rasterise(
    dice: Dice,
    outline: np.ndarray,
    center: tuple[float, float],
    radius: float,
    shape: tuple[int, ...],
    turn: float,
) -> tuple[_Patch | None, int]:
    """Turns, stretches and rasterises an outline [N, 2] given in -1..1.

    Returns:
        the patch (None if no pixel of it is in the picture) and the area in pixels of the whole
        outline, the part outside the picture included.
    """
    angle = dice.uniform(-turn, turn)
    stretch = math.exp(dice.uniform(-0.1, 0.1))
    axes = np.array([radius * stretch, radius / stretch])
    cos, sin = math.cos(angle), math.sin(angle)
    points = (outline * axes) @ np.array([[cos, sin], [-sin, cos]]) + np.array(center)
    low = np.floor(points.min(0)).astype(int) - 1
    high = np.ceil(points.max(0)).astype(int) + 1

    scale = _SUPERSAMPLING
    size = (high - low) * scale
    fine = np.zeros((size[1], size[0]), np.uint8)
    fixed = np.rint(((points - low) * scale - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(fine, [fixed], 1, lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)
    lines = sum(fine[row::scale] for row in range(scale))
    coverage = sum(lines[:, column::scale] for column in range(scale))
    half = scale * scale // 2
    area = int((coverage >= half).sum())

    height, width = shape[:2]
    x0, y0 = max(low[0], 0), max(low[1], 0)
    x1, y1 = min(high[0], width), min(high[1], height)
    if x1 <= x0 or y1 <= y0:
        return None, area
    coverage = coverage[y0 - low[1] : y1 - low[1], x0 - low[0] : x1 - low[0]]
    x, y = np.meshgrid(
        np.arange(x0, x1, dtype=np.float32) + 0.5 - np.float32(center[0]),
        np.arange(y0, y1, dtype=np.float32) + 0.5 - np.float32(center[1]),
    )
    u = (cos * x + sin * y) / np.float32(axes[0])
    v = (-sin * x + cos * y) / np.float32(axes[1])
    alpha = coverage.astype(np.float32) / (scale * scale)
    patch = _Patch(slice(y0, y1), slice(x0, x1), alpha, coverage >= half, u, v, radius)
    return patch, area


def _radial(radii: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    angles = np.arange(count) * (2 * math.pi / count)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radii(angles)[:, None]


def _disc() -> np.ndarray:
    return _radial(np.ones_like, 64)


def _square() -> np.ndarray:
    return np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * 0.9


def _star() -> np.ndarray:
    angles = np.arange(10) * (math.pi / 5) - math.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 1.15, 0.55)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]


def _gear() -> np.ndarray:
    return _radial(lambda angles: np.where(np.cos(8 * angles) > 0, 1.06, 0.80), 128)


def _flower() -> np.ndarray:
    return _radial(lambda angles: 0.72 + 0.34 * np.abs(np.cos(3 * angles)), 128)


def _arrow() -> np.ndarray:
    half = [[1.15, 0.0], [0.15, 0.85], [0.15, 0.38], [-1.15, 0.38]]
    return np.array(half + [[x, -y] for x, y in reversed(half[1:])])


_OUTLINES: dict[str, Callable[[], np.ndarray]] = {
    "disc": _disc,
    "ball": _disc,
    "tile": _square,
    "crate": _square,
    "star": _star,
    "gear": _gear,
    "flower": _flower,
    "arrow": _arrow,
}
_TURN = tuple(0.5 if name in ("tile", "crate", "arrow", "star") else math.pi for name in CLASSES)


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    """An RGB colour, float32 [3] in 0..255, of a hue in turns."""
    offsets = np.array([0.0, 1 / 3, 2 / 3])
    ramp = np.clip(np.abs(((hue - offsets + 0.5) % 1.0) - 0.5) * 6 - 1, 0, 1)
    return (255 * value * (1 - saturation * ramp)).astype(np.float32)


def _any_color(dice: Dice, saturation: tuple[float, float] = (0.1, 0.8)) -> np.ndarray:
    return _color(dice.uniform(0, 1), dice.uniform(*saturation), dice.uniform(0.25, 0.95))


def _own_color(dice: Dice, name: str) -> np.ndarray:
    """Mostly around the class's hue, now and then any hue: colour helps, but does not decide."""
    hue = _HUES[name] + dice.uniform(-0.04, 0.04) if dice.chance(0.88) else dice.uniform(0, 1)
    return _color(hue, dice.uniform(0.55, 0.95), dice.uniform(0.6, 0.98))


def _texture(dice: Dice, name: str, patch: _Patch) -> np.ndarray:
    """The object's colours, float32 [h, w, 3] in 0..255."""
    main = _own_color(dice, name)
    depth = dice.uniform(0.25, 0.4)
    other = 255 - depth * (255 - main) if name in _LIGHT_PATTERNS else depth * main
    second = _PATTERNS[name](dice, patch.u, patch.v)
    colors = np.where(second[..., None], other, main)
    light = 1.0 + 0.22 * (-patch.u * dice.uniform(-1, 1) - patch.v * dice.uniform(-1, 1))
    colors = colors * light[..., None] + 12 * dice.field(*patch.u.shape)[..., None]
    rim = _rim(patch)
    return colors * (1 - 0.55 * rim[..., None])


def _rim(patch: _Patch) -> np.ndarray:
    """1 along the outline, 0 inside: about a pixel and a half wide."""
    inside = cv2.distanceTransform(np.pad(patch.solid, 1).astype(np.uint8), cv2.DIST_L2, 3)
    return np.clip(2.2 - inside[1:-1, 1:-1], 0, 1)


def _plain(dice: Dice, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u + 0.35, v + 0.35) < 0.2


def _stripes(dice: Dice, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.cos(u * dice.uniform(7.5, 9.5)) < -0.1


def _checkers(dice: Dice, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.sin(u * math.pi / 0.6) * np.sin(v * math.pi / 0.6)) > 0


def _planks(dice: Dice, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    frame = np.maximum(np.abs(u), np.abs(v)) > 0.68
    return frame | (np.abs(u - v) < 0.22)


def _hub(dice: Dice, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    distance = np.hypot(u, v)
    return (distance > 0.28) & (distance < 0.5)


def _heart(dice: Dice, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) < 0.36


def _spots(dice: Dice, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.cos(u * 13) + np.cos(v * 13)) > 1.1


def _shaft(dice: Dice, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(v) < 0.13


_PATTERNS: dict[str, Callable[[Dice, np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": _plain,
    "ball": _stripes,
    "tile": _checkers,
    "crate": _planks,
    "star": _spots,
    "gear": _hub,
    "flower": _heart,
    "arrow": _shaft,
}


def _paint(canvas: np.ndarray, patch: _Patch, colors: np.ndarray, opacity: float = 1.0) -> None:
    region = canvas[patch.rows, patch.columns]
    region += (opacity * patch.alpha)[..., None] * (colors - region)


def _smooth_field(dice: Dice, height: int, width: int, cell: int) -> np.ndarray:
    """Value noise in [-1, 1] with features of about ``cell`` pixels, float32 [height, width]."""
    coarse = dice.field(height // cell + 3, width // cell + 3)
    fine = cv2.resize(coarse, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
    return fine[cell : cell + height, cell : cell + width]


def _background(dice: Dice, height: int, width: int) -> np.ndarray:
    """Two colours mixed by noise of several sizes, with scratches: float32 [H, W, 3]."""
    first, second = (_any_color(dice, (0.05, 0.35)) for _ in range(2))
    mix = 0.5 + 0.6 * _smooth_field(dice, height, width, 48)
    mix += 0.35 * _smooth_field(dice, height, width, 16)
    canvas = first + np.clip(mix, 0, 1)[..., None] * (second - first)
    canvas += 22 * _smooth_field(dice, height, width, 5)[..., None]
    canvas = np.ascontiguousarray(canvas, np.float32)
    for _ in range(dice.integer(6, 16)):
        start = dice.integer(0, width), dice.integer(0, height)
        end = start[0] + dice.integer(-60, 60), start[1] + dice.integer(-60, 60)
        color = tuple(float(part) for part in _any_color(dice, (0.0, 0.5)))
        cv2.line(canvas, start, end, color, dice.integer(1, 3), cv2.LINE_8)
    return canvas


def _distractor(dice: Dice, canvas: np.ndarray) -> None:
    """Something of no class: a blob, a long bar or a flat ellipse, often in an object's colours."""
    height, width = canvas.shape[:2]
    center = dice.uniform(0, width), dice.uniform(0, height)
    kind = dice.integer(0, 2)
    if kind == 0:
        swing, phase = dice.uniform(0.1, 0.25), dice.uniform(0, 6)
        outline = _radial(
            lambda angles: 0.8 + swing * np.sin(2 * angles) + 0.12 * np.sin(3 * angles + phase), 64
        )
    elif kind == 1:
        outline = _square() * np.array([1.6, dice.uniform(0.15, 0.3)])
    else:
        outline = _disc() * np.array([1.2, dice.uniform(0.25, 0.42)])
    radius = dice.uniform(10, 36)
    patch, _ = _rasterise(dice, outline, center, radius, canvas.shape, math.pi)
    if patch is None:
        return
    name = CLASSES[dice.integer(0, len(CLASSES) - 1)]
    colors = _own_color(dice, name) if dice.chance(0.35) else _any_color(dice)
    if kind == 1 and dice.chance(0.5):
        pattern = _PATTERNS[name](dice, patch.u, patch.v)
        colors = np.where(pattern[..., None], _any_color(dice), colors)
    _paint(canvas, patch, colors + 12 * dice.field(*patch.u.shape)[..., None], 0.85)


def _bar_in_front(dice: Dice, canvas: np.ndarray, owner: np.ndarray) -> None:
    """A thin bar over what has been drawn so far; it takes the pixels that it hides."""
    height, width = canvas.shape[:2]
    center = dice.uniform(0, width), dice.uniform(0, height)
    outline = _square() * np.array([1.0, dice.uniform(0.05, 0.08)])
    radius = dice.uniform(40, 80)
    patch, _ = _rasterise(dice, outline, center, radius, canvas.shape, math.pi)
    if patch is None:
        return
    _paint(canvas, patch, _any_color(dice) + 10 * dice.field(*patch.u.shape)[..., None])
    owner[patch.rows, patch.columns][patch.solid] = -1


def _photograph(dice: Dice, canvas: np.ndarray) -> np.ndarray:
    """Soft focus, uneven light and sensor noise: float32 [H, W, 3] to uint8."""
    height, width = canvas.shape[:2]
    soft = cv2.GaussianBlur(canvas, (3, 3), dice.uniform(0.4, 0.8))
    light = dice.uniform(0.85, 1.1) * (1 + 0.12 * _smooth_field(dice, height, width, 64))
    noise = dice.uniform(3, 8) * (dice.field(height, width, 3) + dice.field(height, width, 3))
    return np.clip(np.rint(soft * light[..., None] + noise), 0, 255).astype(np.uint8)
