"""Random numbers of the embedded data set."""

import numpy as np


class UniformSampler:
    """Draws from uniform numbers alone, whose stream for a seed is the same in every numpy."""

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

    def point(self, width: int, height: int) -> tuple[float, float]:
        """A point (x, y) in a picture of this size."""
        return self.uniform(0, width), self.uniform(0, height)

    def noise(self, *shape: int) -> np.ndarray:
        """Independent uniform numbers in [-1, 1), float32 of the given shape."""
        return (self._generator.random(shape) * 2 - 1).astype(np.float32)
