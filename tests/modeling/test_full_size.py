"""Every full-size detector, as shipped but for small images and few proposals, takes a step.

The tiny detectors, which have the same heads, take one with every loss (test_detectors.py).
"""

import gc

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from bucketed_ranking.criterion import RankingCriterion
from bucketed_ranking.engine.setup import flatten, load_config
from bucketed_ranking.engine.trainer import Trainer
from bucketed_ranking.modeling.ranking import build_criterion
from bucketed_ranking.zoo import list_configs
from tests.small_detectors import random_batch

pytestmark = pytest.mark.slow

# Transformers: tests/modeling/codetr/test_configs.py.
NAMES = [
    summary.name
    for summary in list_configs()
    if summary.dataset != "shapes" and "DETR" not in summary.detector
]
FEW_PROPOSALS = [
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50",
    # Without its weights, a frozen normalisation normalises nothing.
    "MODEL.RESNETS.NORM", "BN",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("losses", [("score",), ("brs", "ap-exact")], ids=["score", "ranking"])
def test_a_training_step_is_finite_and_moves_the_weights(name, losses):
    torch.manual_seed(0)
    cfg = small_config(name, losses[0])
    model = build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    scoring = [name for name in trained if "cls" in name or "objectness" in name]
    assert scoring
    for loss in losses:
        if loss != losses[0]:
            exchange_loss(model, cfg, small_config(name, loss))
        with EventStorage():
            values = model(random_batch((2, 1)))
        assert all(value.isfinite() and value > 0 for value in values.values()), (loss, values)
        optimizer.zero_grad()
        sum(values.values()).backward()
        without = [n for n, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
        assert without == [], loss
        assert [name for name in scoring if not trained[name].grad.any()] == [], loss
    before = {name: trained[name].detach().clone() for name in scoring}
    optimizer.step()
    assert all(not torch.equal(p, trained[n]) for n, p in before.items())
    del model, optimizer, values, trained
    gc.collect()  # Swin-L holds gigabytes


def small_config(name, loss):
    return load_config(name, loss=loss, options=FEW_PROPOSALS, device="cpu")


def exchange_loss(model, cfg, other):
    """Make the model that `other` describes of that of `cfg`, without building it anew."""
    assert flatten(other) == flatten(cfg) | {"MODEL.RANKING.LOSS": other.MODEL.RANKING.LOSS}
    for path, module in list(model.named_modules()):
        if isinstance(module, RankingCriterion):
            model.set_submodule(path, build_criterion(other, module.weight))
