"""The classes of the embedded data set: outline, pattern and colour of each."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .sampling import UniformSampler


@dataclass(frozen=True)
class ShapeClass:
    """What objects of a class look like.

    ``outline`` is a polygon [N, 2] in about -1..1. ``pattern`` maps coordinates u and v, [h, w] in
    -1..1 across the outline, to the pixels of the second colour, bool [h, w]; ``light`` says that
    this colour is lighter than the first. Objects are turned by up to ``turn`` radians.
    """

    hue: float
    outline: np.ndarray
    pattern: Callable[[UniformSampler, np.ndarray, np.ndarray], np.ndarray]
    light: bool = False
    turn: float = math.pi


def radial(radii: Callable[[np.ndarray], np.ndarray], count: int, start: float = 0.0) -> np.ndarray:
    """A polygon [count, 2] around the origin whose radius is a function of the angle."""
    angles = np.arange(count) * (2 * math.pi / count) + start
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radii(angles)[:, None]


DISC = radial(np.ones_like, 64)
SQUARE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * 0.9
_STAR = radial(lambda _: np.array([1.15, 0.55] * 5), 10, -math.pi / 2)
_GEAR = radial(lambda angles: np.where(np.cos(8 * angles) > 0, 1.06, 0.80), 128)
_FLOWER = radial(lambda angles: 0.72 + 0.34 * np.abs(np.cos(3 * angles)), 128)
_ARROW = np.stack(
    [[1.15, 0.15, 0.15, -1.15, -1.15, 0.15, 0.15], [0, 0.85, 0.38, 0.38, -0.38, -0.38, -0.85]], 1
)


def _checkers(_: UniformSampler, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.sin(u * math.pi / 0.6) * np.sin(v * math.pi / 0.6)) > 0


def _planks(_: UniformSampler, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.maximum(np.abs(u), np.abs(v)) > 0.68) | (np.abs(u - v) < 0.22)


def _ring(_: UniformSampler, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    distance = np.hypot(u, v)
    return (distance > 0.28) & (distance < 0.5)


_SHAPES = {
    "disc": ShapeClass(0.00, DISC, lambda _, u, v: np.hypot(u + 0.35, v + 0.35) < 0.2, light=True),
    "tile": ShapeClass(0.60, SQUARE, _checkers, turn=0.5),
    "star": ShapeClass(
        0.15, _STAR, lambda _, u, v: (np.cos(u * 13) + np.cos(v * 13)) > 1.1, turn=0.5
    ),
    "ball": ShapeClass(
        0.05, DISC, lambda rng, u, _: np.cos(u * rng.uniform(7.5, 9.5)) < -0.1, light=True
    ),
    "gear": ShapeClass(0.75, _GEAR, _ring, light=True),
    "crate": ShapeClass(0.50, SQUARE, _planks, turn=0.5),
    "flower": ShapeClass(0.88, _FLOWER, lambda _, u, v: np.hypot(u, v) < 0.36),
    "arrow": ShapeClass(0.35, _ARROW, lambda _, u, v: np.abs(v) < 0.13, light=True, turn=0.5),
}
CLASS_NAMES = tuple(_SHAPES)
"""Most frequent first. Pairs alike in outline or colour: disc/ball, tile/crate, gear/flower."""
SHAPES = tuple(_SHAPES.values())
"""What they look like, in the same order."""
HEAD_TO_TAIL = 6.0
"""How many times more often the first class is drawn than the last; geometric in between."""
WEIGHTS = HEAD_TO_TAIL ** (-np.arange(len(SHAPES)) / (len(SHAPES) - 1))
"""How often each class is drawn, relative to the first: float64 [number of classes]."""
