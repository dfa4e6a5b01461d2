"""Parameter groups and clipping of the optimizer."""

import pytest
import torch
from torch import nn

from bucketed_ranking.engine.optimizer import build_optimizer
from bucketed_ranking.engine.setup import load_config


def model() -> nn.ModuleDict:
    return nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})


def optimizer_of(module: nn.Module, *options: str) -> torch.optim.Optimizer:
    options = ["SOLVER.BASE_LR", "0.01", *options]
    return build_optimizer(load_config("retinanet_tiny", options=options, device="cpu"), module)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_learning_rates_have_factors_by_name(kind):
    module = model()
    factors = '[["backbone", 0.1], ["bias", 0.5]]'
    optimizer = optimizer_of(module, "SOLVER.OPTIMIZER", kind, "SOLVER.LR_FACTORS", factors)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    expected = {
        "backbone.weight": 0.001, "backbone.bias": 0.0005, "head.weight": 0.01, "head.bias": 0.005,
    }  # fmt: skip
    for name, parameter in module.named_parameters():
        assert rates[id(parameter)] == pytest.approx(expected[name])


def test_all_gradients_are_clipped_together():
    module = model()
    clipping = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.1"]
    how = ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model", "SOLVER.OPTIMIZER", "SGD"]
    plain = ["SOLVER.MOMENTUM", "0.0", "SOLVER.WEIGHT_DECAY", "0.0"]
    optimizer = optimizer_of(module, *clipping, *how, *plain)
    before = [p.detach().clone() for p in module.parameters()]
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    # Twelve gradients of 1 have the norm sqrt(12); each becomes 0.1 / sqrt(12).
    for old, p in zip(before, module.parameters(), strict=True):
        torch.testing.assert_close(
            old - p, torch.full_like(p, 0.01 * 0.1 / 12**0.5), rtol=1e-3, atol=1e-6
        )
