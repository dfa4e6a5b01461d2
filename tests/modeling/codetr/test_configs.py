"""The full-size transformers: a step of each as shipped, and the published recipes."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from bucketed_ranking.engine.setup import load_config
from bucketed_ranking.engine.trainer import Trainer
from tests.small_detectors import random_batch

R_50, SWIN_T, SWIN_L = (f"co_deformable_detr_{name}_1x" for name in ("R_50", "swin_t", "swin_l"))
PLAIN = "deformable_detr_R_50_1x"
FEW_PROPOSALS = [
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50",
    # Without its weights, a frozen normalisation normalises nothing.
    "MODEL.RESNETS.NORM", "BN",
]  # fmt: skip
ONE_LAYER = ["MODEL.CODETR.ENCODER_LAYERS", "1", "MODEL.CODETR.DECODER_LAYERS", "1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loss", "options"),
    [
        (R_50, "score", ONE_LAYER),
        (R_50, "brs", []),
        (PLAIN, "brs", ONE_LAYER),
        (SWIN_T, "brs", ONE_LAYER),
    ],
)
def test_a_training_step_is_finite_and_moves_the_weights(name, loss, options):
    torch.manual_seed(0)
    cfg = load_config(name, loss=loss, options=[*FEW_PROPOSALS, *options], device="cpu")
    model = build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    with EventStorage():
        losses = model(random_batch((2,)))
    for key, value in losses.items():
        assert value.isfinite()
        assert value > 0 or key.endswith("_sort"), "two objects may be in order"
    sum(losses.values()).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    branches = [f"head.{kind}_branches.0" for kind in ("class", "box")]
    before = {
        name: p.detach().clone() for name, p in trained.items() if name.startswith(tuple(branches))
    }
    optimizer.step()
    assert [name for name, p in before.items() if torch.equal(p, trained[name])] == []
    assert any(name.startswith("auxiliary.") for name in trained) == (name != PLAIN)


def test_learning_rates_are_those_of_the_recipe():
    cfg = load_config(R_50, device="cpu")
    model = build_model(cfg)
    rates = {
        id(parameter): group["lr"]
        for group in Trainer.build_optimizer(cfg, model).param_groups
        for parameter in group["params"]
    }
    slow = {n for n, p in model.named_parameters() if p.requires_grad and rates[id(p)] < 1e-4}
    assert {name.split(".")[0] for name in slow} == {"backbone", "head"}
    assert {name.split(".")[-2] for name in slow if name.startswith("head.")} == {
        "sampling_offsets"
    }
    assert "backbone.res3.0.conv1.weight" in slow
    assert "backbone.res2.0.conv1.weight" not in slow, "frozen"


@pytest.mark.parametrize("name", [R_50, SWIN_T, SWIN_L])
def test_score_and_ranking_have_their_own_recipes(name):
    score, ranking = (load_config(name, loss=loss, device="cpu") for loss in ("score", "brs"))
    for cfg, steps, gamma in ((score, (82500,), 0.1), (ranking, (75000, 82500), 0.2)):
        assert (steps, gamma) == (cfg.SOLVER.STEPS, cfg.SOLVER.GAMMA)
        assert cfg.SOLVER.BASE_LR == 2e-4
        assert cfg.INPUT.FORMAT == "RGB"
    assert (score.MODEL.CODETR.CLASS_COST, ranking.MODEL.CODETR.CLASS_COST) == (2.0, 4.0)
    weights = [cfg.MODEL.CODETR.AUXILIARY_LOSS_WEIGHT for cfg in (score, ranking)]
    assert weights == [12.0, 5.0]
    assert score.SOLVER.WEIGHT_DECAY == score.SOLVER.WEIGHT_DECAY_NORM
    assert (1e-4 if name == R_50 else 0.05) == score.SOLVER.WEIGHT_DECAY


@pytest.mark.parametrize("size", ["t", "l"])
def test_swins_are_those_of_faster_rcnn(size):
    own = load_config(f"co_deformable_detr_swin_{size}_1x", device="cpu").MODEL
    other = load_config(f"faster_rcnn_swin_{size}_FPN_1x", device="cpu").MODEL
    assert own.WEIGHTS == other.WEIGHTS
    assert own.SWIN.OUT_FEATURES == other.SWIN.OUT_FEATURES[1:] == ["p1", "p2", "p3"]
    assert {**own.SWIN, "OUT_FEATURES": None} == {**other.SWIN, "OUT_FEATURES": None}
