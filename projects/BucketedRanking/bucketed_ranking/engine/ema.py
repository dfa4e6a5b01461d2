"""The average of a model's weights over training, evaluated and kept in their place."""

from timm.utils import ModelEmaV3
from torch import nn


class WeightAverage(ModelEmaV3):
    """An exponential moving average of the weights of a model.

    Its t-th update keeps min(decay, 1 - t^(-1/2)) of what it has: it starts as a copy of the
    model, spans about the last sqrt(t) updates then, 17 of 300 and 300 of 90,000, and never more
    than 1 / (1 - decay). (timm's own exponent of 2/3 was behind the weights in short trainings:
    docs/ema.md.) The statistics of batch norms are averaged with the weights that they belong to.

    Attributes:
        module: a model with the averaged weights, in evaluation mode.
        updates: their number.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, decay, use_warmup=True, warmup_power=0.5)
        self.updates = 0

    def update(self, model: nn.Module) -> None:
        """Take the weights of `model` in, after a step of its training."""
        self.updates += 1
        super().update(model, self.updates)
