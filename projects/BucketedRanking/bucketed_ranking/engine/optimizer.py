"""The optimizer of a config, with Detectron2's parameter groups."""

import itertools
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn
from torch.nn.utils import clip_grad_norm_

FULL_MODEL = "full_model"
"""SOLVER.CLIP_GRADIENTS.CLIP_TYPE that bounds the norm of all gradients together, as DETR does."""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that SOLVER describes, with SOLVER.LR_FACTORS and CLIP_GRADIENTS."""
    solver = cfg.SOLVER
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: _factor(solver.LR_FACTORS, name),
        overrides={"relative_position_bias_table": {"weight_decay": 0.0}},
    )
    how: dict[str, Any] = {"lr": solver.BASE_LR}
    kind = torch.optim.AdamW
    if solver.OPTIMIZER == "SGD":
        kind = torch.optim.SGD
        how |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV, "foreach": True}
        how["weight_decay"] = solver.WEIGHT_DECAY
    clipping = solver.CLIP_GRADIENTS
    if clipping.ENABLED and clipping.CLIP_TYPE == FULL_MODEL:
        return _clipped(kind, clipping.CLIP_VALUE, clipping.NORM_TYPE)(params, **how)
    return maybe_add_gradient_clipping(cfg, kind)(params, **how)


def _factor(factors: list, name: str) -> float:
    """The product of the factors whose word is in the parameter's name."""
    product = 1.0
    for word, factor in factors:
        product *= factor if word in name else 1.0
    return product


def _clipped(kind: type, limit: float, norm_type: float) -> type[torch.optim.Optimizer]:
    """An optimizer whose step first bounds the norm of the gradients of all its parameters."""

    class Clipped(kind):
        def step(self, closure=None):
            groups = (group["params"] for group in self.param_groups)
            clip_grad_norm_(list(itertools.chain(*groups)), limit, norm_type)
            return super().step(closure)

    Clipped.__name__ = f"{kind.__name__}WithGradientClip"
    return Clipped
