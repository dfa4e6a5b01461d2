"""timm's backbones: their features, what is frozen, their input, their weights in a detector."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage
from safetensors.torch import save_file

from bucketed_ranking.engine.checkpoint import SafeCheckpointer
from bucketed_ranking.engine.setup import load_config, set_num_classes
from bucketed_ranking.errors import BucketRankError
from bucketed_ranking.modeling.timm_backbones import TimmBackbone
from tests.small_detectors import NUM_CLASSES, narrow_config, random_batch

timm = pytest.importorskip("timm")

LIGHT = ["retinanet_lite0_FPN", "atss_lite0_FPN", "faster_rcnn_lite0_FPN", "mask_rcnn_lite0_FPN"]
LITE0 = "tf_efficientnet_lite0"
SMALL = ["MODEL.TIMM.NAME", "resnet10t", "MODEL.FPN.OUT_CHANNELS", "32"]


def light_config(name, loss="brs", *options):
    cfg = load_config(name, loss=loss, options=options, device="cpu")
    set_num_classes(cfg, NUM_CLASSES)
    return cfg


@pytest.mark.parametrize("name", [LITE0, "resnet10t", "convnext_atto"])
def test_features_are_those_of_the_model_and_have_the_stated_shapes(name):
    backbone = TimmBackbone(name, ["c3", "c5"]).eval()
    images = torch.rand(1, 3, 64, 96)
    features = backbone(images)
    assert list(features) == ["c3", "c5"]
    for feature, shape in backbone.output_shape().items():
        size = (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
        assert features[feature].shape == size
        assert shape.stride == 2 ** int(feature[1:])
    assert torch.equal(backbone.model(images)[-1], features["c5"])


@pytest.mark.parametrize(
    ("name", "freeze_at", "trained"),
    [
        (LITE0, 0, {"conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4",
                    "blocks.5", "blocks.6"}),
        (LITE0, 2, {"blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.6"}),
        (LITE0, 5, set()),
        ("resnet10t", 1, {"layer1.0", "layer2.0", "layer3.0", "layer4.0"}),
        ("resnet10t", 2, {"layer2.0", "layer3.0", "layer4.0"}),
        ("convnext_atto", 3, {"stages_2.downsample", "stages_2.blocks", "stages_3.downsample",
                              "stages_3.blocks"}),
    ],
)  # fmt: skip
def test_freezing_from_the_input_on(name, freeze_at, trained):
    backbone = TimmBackbone(name, ["c5"], freeze_at=freeze_at)
    stages = {
        ".".join(n.split(".")[: 2 if n.startswith(("blocks", "layer", "stages")) else 1])
        for n, parameter in backbone.model.named_parameters()
        if parameter.requires_grad
    }
    assert stages == trained


@pytest.mark.parametrize(("options", "moves"), [({}, True), ({"freeze_bn": True}, False)])
def test_frozen_batch_norms_keep_their_statistics_and_their_activation(options, moves):
    torch.manual_seed(0)
    backbone = TimmBackbone(LITE0, ["c5"], **options).eval()
    images = torch.rand(2, 3, 64, 64)
    # timm fuses an activation that is no linear map into the norm after the stem.
    stem = backbone.model.bn1(backbone.model.conv_stem(images))
    assert stem.min() == 0
    before = backbone(images)["c5"]
    backbone.train()(images)
    assert torch.equal(backbone.eval()(images)["c5"], before) != moves


def test_stages_that_are_frozen_keep_their_statistics_too():
    backbone = TimmBackbone("resnet10t", ["c2", "c5"], freeze_at=2).eval()
    images = torch.rand(2, 3, 64, 64)
    before = backbone(images)
    backbone.train()(images)
    after = backbone.eval()(images)
    assert torch.equal(after["c2"], before["c2"])
    assert not torch.equal(after["c5"], before["c5"])


def test_pictures_are_prepared_as_the_weights_say_unless_the_user_says_otherwise():
    cfg = light_config("retinanet_lite0_FPN")
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_STD == [127.5, 127.5, 127.5]
    of_imagenet = light_config("retinanet_lite0_FPN", "brs", *SMALL)
    assert pytest.approx([123.675, 116.28, 103.53]) == of_imagenet.MODEL.PIXEL_MEAN
    assert pytest.approx([58.395, 57.12, 57.375]) == of_imagenet.MODEL.PIXEL_STD
    own = ["INPUT.FORMAT", "BGR", "MODEL.PIXEL_STD", "[1.0, 2.0, 3.0]"]
    cfg = light_config("retinanet_lite0_FPN", "brs", *own)
    assert cfg.INPUT.FORMAT == "BGR"
    assert cfg.MODEL.PIXEL_STD == [1.0, 2.0, 3.0]
    assert cfg.MODEL.PIXEL_MEAN == [127.5, 127.5, 127.5]


@pytest.mark.parametrize("loss", ["score", "brs"])
@pytest.mark.parametrize("name", LIGHT)
def test_a_light_detector_takes_a_step_that_reaches_all_that_is_not_frozen(name, loss):
    torch.manual_seed(0)
    model = build_model(light_config(name, loss)).train()
    with EventStorage():
        losses = model(random_batch())
    assert all(value.isfinite() and value > 0 for value in losses.values()), losses
    sum(losses.values()).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert not any("blocks.1." in n for n in trained)
    assert any("blocks.2." in n for n in trained)
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []


def test_features_without_fpn_carry_co_detr():
    torch.manual_seed(0)
    options = [
        "MODEL.BACKBONE.NAME", "build_timm_backbone",
        "MODEL.BACKBONE.FREEZE_AT", "2",
        "MODEL.TIMM.NAME", "resnet10t",
        "MODEL.FPN.IN_FEATURES", "['c3', 'c4', 'c5']",
    ]  # fmt: skip
    cfg = narrow_config("co_deformable_detr_tiny", "brs", *options)
    assert cfg.INPUT.FORMAT == "RGB"
    model = build_model(cfg).train()
    shapes = model.backbone.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {"c3": 8, "c4": 16, "c5": 32}
    assert model.neck.names == ["p3", "p4", "p5"]
    with EventStorage():
        losses = model(random_batch())
    sum(losses.values()).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # timm starts residual branches at 0, so their convolutions have no gradient yet.
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    assert model.backbone.model.layer2[0].bn2.weight.grad.any()
    stages = {n.split(".")[2] for n in trained if n.startswith("backbone.")}
    assert stages == {"layer2", "layer3", "layer4"}


def test_imagenet_weights_reach_the_backbone_whole(lite0_weights, caplog):
    cfg = light_config("retinanet_lite0_FPN")
    model = build_model(cfg)
    SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    stored = torch.load(lite0_weights, weights_only=True)
    for name, value in model.backbone.bottom_up.model.state_dict().items():
        assert torch.equal(value, stored[name]), name
    assert "not found in the checkpoint" not in caplog.text


def test_weights_of_timm_load_from_a_safetensors_file_and_by_flattened_names(tmp_path):
    """Its classifiers say stages.0 where its models of features say stages_0."""
    stored = timm.create_model("convnext_atto").state_dict()
    save_file(stored, tmp_path / "w.safetensors")
    cfg = light_config("retinanet_lite0_FPN", "brs", *SMALL, "MODEL.TIMM.NAME", "convnext_atto")
    model = build_model(cfg)
    SafeCheckpointer(model).load(str(tmp_path / "w.safetensors"))
    state = model.backbone.bottom_up.model.state_dict()
    names = {name.replace("stem_", "stem.").replace("stages_", "stages."): name for name in state}
    assert len(names.keys() & stored.keys()) == len(state)
    for name, ours in names.items():
        assert torch.equal(state[ours], stored[name]), name


def test_a_whole_detectors_weights_load_as_they_are(tmp_path):
    cfg = light_config("retinanet_lite0_FPN", "brs", *SMALL)
    model, again = build_model(cfg), build_model(cfg)
    SafeCheckpointer(model, str(tmp_path)).save("whole")
    SafeCheckpointer(again).load_all(str(tmp_path / "whole.pth"))
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("damaged", [b"", b"no tensors"])
def test_a_damaged_safetensors_file_is_one_sentence(damaged, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(damaged)
    with pytest.raises(BucketRankError, match=r"w\.safetensors cannot be read"):
        SafeCheckpointer(torch.nn.Linear(1, 1)).load(str(tmp_path / "w.safetensors"))


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "w.pth")
    model = build_model(light_config("retinanet_lite0_FPN"))
    with pytest.raises(BucketRankError, match=r"are not those of MODEL\.TIMM\.NAME: \d+ of its"):
        SafeCheckpointer(model).load(str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["MODEL.TIMM.NAME", "efficientnet_lite9"], "did you mean"),
        (["MODEL.FPN.IN_FEATURES", "['c3', 'c6']"], r"has no feature 'c6'.*it has c1, c2"),
    ],
)
def test_what_a_model_does_not_have_is_one_sentence(options, sentence):
    with pytest.raises(BucketRankError, match=sentence):
        build_backbone(light_config("retinanet_lite0_FPN", "brs", *options), ShapeSpec(channels=3))
