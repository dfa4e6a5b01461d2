"""The average of a model's weights over training, evaluated and kept in their place."""

from timm.utils import ModelEmaV3
from torch import nn


class WeightAverage(ModelEmaV3):
    """An exponential moving average of the parameters of a model.

    Its t-th update keeps min(decay, 1 - t^(-2/3)) of what it has: it starts as a copy of the
    model, spans about t^(2/3) updates then, 34 of 200 and 200 of 2,800, and never more than
    1 / (1 - decay).

    Attributes:
        module: a model with the averaged weights, in evaluation mode.
        updates: their number.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, decay, use_warmup=True)
        self.updates = 0

    def update(self, model: nn.Module) -> None:
        """Take the weights of `model` in, after a step of its training."""
        self.updates += 1
        super().update(model, self.updates)
