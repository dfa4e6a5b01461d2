"""Epochs, batch, picture size and weights as config keys."""

import pytest
import torch
from detectron2.modeling import build_model

from bucketed_ranking.engine.checkpoint import SafeCheckpointer
from bucketed_ranking.engine.plan import plan_training, plan_weights
from bucketed_ranking.engine.setup import load_config, merge_options, set_num_classes
from bucketed_ranking.errors import BucketRankError


def planned(config: str, num_images: int = 200, weights: str | None = None, **how):
    cfg = load_config(config, loss="brs", device="cpu")
    options = plan_training(cfg, num_images, **how)
    options += plan_weights(cfg, config, weights) if weights is not None else []
    merge_options(cfg, options)
    return cfg


def test_nothing_given_changes_nothing():
    assert plan_training(load_config("retinanet_tiny", device="cpu"), 200) == []


def test_epochs_set_length_warm_up_and_evaluations():
    solver = planned("retinanet_tiny", epochs=30).SOLVER  # 8 pictures a step
    assert (solver.MAX_ITER, solver.CHECKPOINT_PERIOD) == (750, 75)
    assert solver.WARMUP_ITERS == 50
    cfg = planned("retinanet_tiny", epochs=2)
    assert (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.WARMUP_ITERS) == (50, 25, 5)
    assert planned("retinanet_tiny", epochs=100).SOLVER.WARMUP_ITERS == 50
    assert planned("retinanet_tiny", num_images=3, epochs=0.5).SOLVER.MAX_ITER == 1


def test_steps_keep_their_place_in_the_schedule():
    solver = planned("retinanet_R_50_FPN_1x", num_images=16000, epochs=9).SOLVER
    assert solver.MAX_ITER == 9000
    assert solver.STEPS == (6000, 8000)


def test_another_batch_sees_as_many_pictures_with_a_learning_rate_that_fits_it():
    solver = planned("faster_rcnn_R_50_FPN_1x", batch_size=4).SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER) == (4, 360000)
    assert pytest.approx(0.012 / 4) == solver.BASE_LR
    assert planned("faster_rcnn_R_50_FPN_1x", batch_size=16).SOLVER.BASE_LR == 0.012
    light = planned("retinanet_lite0_FPN", batch_size=2)
    assert (light.TEST.EVAL_PERIOD, light.SOLVER.CHECKPOINT_PERIOD) == (2000, 2000)
    adam = planned("faster_rcnn_swin_t_FPN_1x", batch_size=4).SOLVER
    assert pytest.approx(0.0001 / 2) == adam.BASE_LR
    assert planned("faster_rcnn_R_50_FPN_1x", batch_size=4, lr=0.5).SOLVER.BASE_LR == 0.5


def test_every_picture_size_scales_with_that_of_the_test():
    given = planned("retinanet_lite0_FPN", image_size=512).INPUT
    assert given.MIN_SIZE_TRAIN == (416, 480, 512, 544, 608)
    assert (given.MAX_SIZE_TRAIN, given.MIN_SIZE_TEST, given.MAX_SIZE_TEST) == (864, 512, 864)


def test_weights_by_name(tmp_path):
    assert planned("retinanet_lite0_FPN", weights="imagenet").MODEL.WEIGHTS == (
        "timm://tf_efficientnet_lite0"
    )
    resnet = planned("retinanet_R_50_FPN_1x", weights="imagenet").MODEL.WEIGHTS
    assert resnet == "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    zoo = planned("retinanet_R_50_FPN_1x", weights="coco").MODEL.WEIGHTS
    assert zoo.startswith("https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/retinanet_R_50")
    assert planned("retinanet_tiny", weights="a/b.pth").MODEL.WEIGHTS == "a/b.pth"
    with pytest.raises(BucketRankError, match=r"no ImageNet weights; the configs in Light/"):
        planned("retinanet_tiny", weights="imagenet")
    with pytest.raises(BucketRankError, match="no detector like retinanet_lite0_FPN"):
        planned("retinanet_lite0_FPN", weights="coco")


@pytest.mark.parametrize("config", ["retinanet_lite0_FPN", "retinanet_R_50_FPN_1x"])
def test_without_weights_nothing_is_frozen(config):
    model = build_model(planned(config, weights="none"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


def test_a_zoo_detector_of_other_classes_gives_all_but_its_class_layer(tmp_path, caplog):
    """As Detectron2's model zoo stores it: 80 classes, a background column, by its own names."""
    options = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    stored, ours = (
        load_config("faster_rcnn_R_50_FPN_1x", loss=loss, options=options, device="cpu")
        for loss in ("score", "brs")
    )
    set_num_classes(ours, 3)
    whole = build_model(stored)
    torch.save({"model": whole.state_dict(), "__author__": "zoo"}, tmp_path / "model_final.pth")
    model = build_model(ours)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpointer = SafeCheckpointer(model)
    checkpointer.load(str(tmp_path / "model_final.pth"))
    of_classes = {name for name in before if "box_predictor" in name}
    assert set(checkpointer.unfitting) == of_classes
    for name, value in model.state_dict().items():
        expected = before[name] if name in of_classes else whole.state_dict()[name]
        assert torch.equal(value, expected), name
    assert "box_predictor.cls_score.weight" in caplog.text
