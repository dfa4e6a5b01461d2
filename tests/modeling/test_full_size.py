"""Every full-size detector, as shipped but for small images and few proposals, takes a step."""

import gc

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from bucketed_ranking.engine.setup import load_config
from bucketed_ranking.engine.trainer import Trainer
from bucketed_ranking.zoo import list_configs
from tests.small_detectors import random_batch

pytestmark = pytest.mark.slow

# Any other loss takes the same way as BRS, which the tiny detectors' tests go with all of them.
CASES = [
    (summary.name, loss)
    for summary in list_configs()
    for loss in ("score", "brs")
    if summary.dataset != "shapes"
]
FEW_PROPOSALS = [
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50",
    # Without its weights, a frozen normalisation normalises nothing.
    "MODEL.RESNETS.NORM", "BN",
]  # fmt: skip


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_a_training_step_is_finite_and_moves_the_weights(name, loss):
    torch.manual_seed(0)
    cfg = load_config(name, loss=loss, options=FEW_PROPOSALS, device="cpu")
    model = build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    with EventStorage():
        losses = model(random_batch((2, 1)))
    assert all(value.isfinite() and value > 0 for value in losses.values()), losses
    sum(losses.values()).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained.items() if "cls" in n or "objectness" in n}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    optimizer.step()
    assert before
    assert all(not torch.equal(p, trained[n]) for n, p in before.items())
    del model, optimizer, losses, trained
    gc.collect()  # Swin-L holds gigabytes
