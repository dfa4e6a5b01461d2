"""Rasterised outlines, colours, textures and backgrounds of the embedded data set.

A canvas is float32 RGB [H, W, 3] in 0..255, drawn on in place. Geometry is rounded to 1/16 pixel
before it is rasterised, so masks, and with them the annotations, agree between machines; colours
pass through floating point and may differ by a grey level.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .classes import DISC, SHAPES, SQUARE, ShapeClass, radial
from .sampling import UniformSampler

_SUPERSAMPLING = 4
_SUBPIXEL_BITS = 4


@dataclass
class Patch:
    """A rasterised outline, cut to the picture: where it lies, its coverage and own coordinates.

    ``area`` is that of the whole outline in pixels, the part outside the picture included;
    ``alpha`` is float32 [h, w] in 0..1, ``solid`` its pixels covered by half or more; ``u`` and
    ``v``, float32 [h, w], are -1..1 across the outline, along its own axes.
    """

    rows: slice
    columns: slice
    area: int
    alpha: np.ndarray
    solid: np.ndarray
    u: np.ndarray
    v: np.ndarray


def rasterise(
    rng: UniformSampler,
    outline: np.ndarray,
    center: tuple[float, float],
    radius: float,
    shape: tuple[int, ...],
    turn: float = math.pi,
) -> Patch | None:
    """Turns, stretches and rasterises an outline [N, 2] given in -1..1; None if all is outside."""
    angle = rng.uniform(-turn, turn)
    stretch = math.exp(rng.uniform(-0.1, 0.1))
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
    coverage = fine.reshape(size[1] // scale, scale, size[0] // scale, scale).sum((1, 3))
    half = scale * scale // 2
    area = int((coverage >= half).sum())

    height, width = shape[:2]
    x0, y0 = max(low[0], 0), max(low[1], 0)
    x1, y1 = min(high[0], width), min(high[1], height)
    if x1 <= x0 or y1 <= y0:
        return None
    coverage = coverage[y0 - low[1] : y1 - low[1], x0 - low[0] : x1 - low[0]]
    x, y = np.meshgrid(
        np.arange(x0, x1, dtype=np.float32) + 0.5 - np.float32(center[0]),
        np.arange(y0, y1, dtype=np.float32) + 0.5 - np.float32(center[1]),
    )
    u = (cos * x + sin * y) / np.float32(axes[0])
    v = (-sin * x + cos * y) / np.float32(axes[1])
    alpha = coverage.astype(np.float32) / (scale * scale)
    return Patch(slice(y0, y1), slice(x0, x1), area, alpha, coverage >= half, u, v)


def paint(canvas: np.ndarray, patch: Patch, colors: np.ndarray, opacity: float = 1.0) -> None:
    """Blends colours, float32 [h, w, 3], into the canvas under the patch."""
    region = canvas[patch.rows, patch.columns]
    region += (opacity * patch.alpha)[..., None] * (colors - region)


def texture(rng: UniformSampler, shape: ShapeClass, patch: Patch) -> np.ndarray:
    """The colours of an object: pattern, shading, noise and a dark rim, float32 [h, w, 3]."""
    main = _own_color(rng, shape)
    depth = rng.uniform(0.25, 0.4)
    other = 255 - depth * (255 - main) if shape.light else depth * main
    second = shape.pattern(rng, patch.u, patch.v)
    colors = np.where(second[..., None], other, main)
    light = 1.0 + 0.22 * (-patch.u * rng.uniform(-1, 1) - patch.v * rng.uniform(-1, 1))
    colors = colors * light[..., None] + 12 * rng.noise(*patch.u.shape)[..., None]
    inside = cv2.distanceTransform(np.pad(patch.solid, 1).astype(np.uint8), cv2.DIST_L2, 3)
    rim = np.clip(2.2 - inside[1:-1, 1:-1], 0, 1)
    return colors * (1 - 0.55 * rim[..., None])


def background(rng: UniformSampler, height: int, width: int) -> np.ndarray:
    """A new canvas: two colours mixed by noise of several sizes, with scratches."""
    first, second = (_any_color(rng, (0.05, 0.35)) for _ in range(2))
    mix = 0.5 + 0.6 * _smooth_noise(rng, height, width, 48)
    mix += 0.35 * _smooth_noise(rng, height, width, 16)
    canvas = first + np.clip(mix, 0, 1)[..., None] * (second - first)
    canvas += 22 * _smooth_noise(rng, height, width, 5)[..., None]
    canvas = np.ascontiguousarray(canvas, np.float32)
    for _ in range(rng.integer(6, 16)):
        start = rng.integer(0, width), rng.integer(0, height)
        end = start[0] + rng.integer(-60, 60), start[1] + rng.integer(-60, 60)
        color = tuple(float(part) for part in _any_color(rng, (0.0, 0.5)))
        cv2.line(canvas, start, end, color, rng.integer(1, 3), cv2.LINE_8)
    return canvas


def draw_distractor(rng: UniformSampler, canvas: np.ndarray) -> None:
    """Draws a blob, a long bar or a flat ellipse of no class, often in an object's colours."""
    height, width = canvas.shape[:2]
    center = rng.point(width, height)
    kind = rng.integer(0, 2)
    if kind == 0:
        swing, phase = rng.uniform(0.1, 0.25), rng.uniform(0, 6)
        outline = radial(
            lambda angles: 0.8 + swing * np.sin(2 * angles) + 0.12 * np.sin(3 * angles + phase), 64
        )
    elif kind == 1:
        outline = SQUARE * np.array([1.6, rng.uniform(0.15, 0.3)])
    else:
        outline = DISC * np.array([1.2, rng.uniform(0.25, 0.42)])
    patch = rasterise(rng, outline, center, rng.uniform(10, 36), canvas.shape)
    if patch is None:
        return
    shape = SHAPES[rng.integer(0, len(SHAPES) - 1)]
    colors = _own_color(rng, shape) if rng.chance(0.35) else _any_color(rng)
    if kind == 1 and rng.chance(0.5):
        pattern = shape.pattern(rng, patch.u, patch.v)
        colors = np.where(pattern[..., None], _any_color(rng), colors)
    paint(canvas, patch, colors + 12 * rng.noise(*patch.u.shape)[..., None], 0.85)


def draw_bar(rng: UniformSampler, canvas: np.ndarray) -> Patch | None:
    """Draws a thin bar; returns where, or None if it lies outside the picture."""
    height, width = canvas.shape[:2]
    center = rng.point(width, height)
    outline = SQUARE * np.array([1.0, rng.uniform(0.05, 0.08)])
    patch = rasterise(rng, outline, center, rng.uniform(40, 80), canvas.shape)
    if patch is not None:
        paint(canvas, patch, _any_color(rng) + 10 * rng.noise(*patch.u.shape)[..., None])
    return patch


def photograph(rng: UniformSampler, canvas: np.ndarray) -> np.ndarray:
    """The canvas with soft focus, uneven light and sensor noise, uint8 [H, W, 3]."""
    height, width = canvas.shape[:2]
    soft = cv2.GaussianBlur(canvas, (3, 3), rng.uniform(0.4, 0.8))
    light = rng.uniform(0.85, 1.1) * (1 + 0.12 * _smooth_noise(rng, height, width, 64))
    noise = rng.uniform(3, 8) * (rng.noise(height, width, 3) + rng.noise(height, width, 3))
    return np.clip(np.rint(soft * light[..., None] + noise), 0, 255).astype(np.uint8)


def _smooth_noise(rng: UniformSampler, height: int, width: int, cell: int) -> np.ndarray:
    """Value noise in [-1, 1] with features of about ``cell`` pixels, float32 [height, width]."""
    coarse = rng.noise(height // cell + 3, width // cell + 3)
    fine = cv2.resize(coarse, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
    return fine[cell : cell + height, cell : cell + width]


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    """An RGB colour, float32 [3] in 0..255, of a hue in turns."""
    offsets = np.array([0.0, 1 / 3, 2 / 3])
    ramp = np.clip(np.abs(((hue - offsets + 0.5) % 1.0) - 0.5) * 6 - 1, 0, 1)
    return (255 * value * (1 - saturation * ramp)).astype(np.float32)


def _any_color(rng: UniformSampler, saturation: tuple[float, float] = (0.1, 0.8)) -> np.ndarray:
    return _color(rng.uniform(0, 1), rng.uniform(*saturation), rng.uniform(0.25, 0.95))


def _own_color(rng: UniformSampler, shape: ShapeClass) -> np.ndarray:
    """Mostly around the class's hue, now and then any hue: colour helps, but does not decide."""
    hue = shape.hue + rng.uniform(-0.04, 0.04) if rng.chance(0.88) else rng.uniform(0, 1)
    return _color(hue, rng.uniform(0.55, 0.95), rng.uniform(0.6, 0.98))
