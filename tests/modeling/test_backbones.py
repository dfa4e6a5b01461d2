"""Backbones: they fit a detector, and the weights of their own release load into them."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import StochasticDepth

from bucketed_ranking.engine.checkpoint import SafeCheckpointer
from bucketed_ranking.engine.setup import load_config, set_num_classes
from bucketed_ranking.engine.trainer import Trainer
from bucketed_ranking.errors import BucketRankError
from tests.small_detectors import NUM_CLASSES, random_batch

EMBED_DIM, DEPTHS, HEADS, WINDOW = 12, (1, 2, 1, 1), (1, 2, 3, 3), 4
SMALL_SWIN = [
    "MODEL.SWIN.EMBED_DIM", str(EMBED_DIM),
    "MODEL.SWIN.DEPTHS", str(DEPTHS),
    "MODEL.SWIN.NUM_HEADS", str(HEADS),
    "MODEL.SWIN.WINDOW_SIZE", str(WINDOW),
    "MODEL.FPN.OUT_CHANNELS", "16",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
]  # fmt: skip


def swin_config(*options: str, loss: str = "brs") -> CfgNode:
    cfg = load_config(
        "faster_rcnn_swin_t_FPN_1x", loss=loss, options=[*SMALL_SWIN, *options], device="cpu"
    )
    set_num_classes(cfg, NUM_CLASSES)
    return cfg


def official_swin_weights() -> dict[str, torch.Tensor]:
    """State of Swin's own ImageNet classifier (models/swin_transformer.py of its release)."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (EMBED_DIM, 3, 4, 4),
        "patch_embed.proj.bias": (EMBED_DIM,),
    }

    def affine(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    affine("patch_embed.norm", EMBED_DIM)
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        dim = EMBED_DIM * 2**stage
        for index in range(depth):
            block = f"layers.{stage}.blocks.{index}"
            affine(f"{block}.norm1", dim)
            shapes[f"{block}.attn.relative_position_bias_table"] = ((2 * WINDOW - 1) ** 2, heads)
            shapes[f"{block}.attn.relative_position_index"] = (WINDOW**2, WINDOW**2)
            affine(f"{block}.attn.qkv", 3 * dim, dim)
            affine(f"{block}.attn.proj", dim, dim)
            affine(f"{block}.norm2", dim)
            affine(f"{block}.mlp.fc1", 4 * dim, dim)
            affine(f"{block}.mlp.fc2", dim, 4 * dim)
            if index % 2:
                shapes[f"{block}.attn_mask"] = (4, WINDOW**2, WINDOW**2)
        if stage < len(DEPTHS) - 1:
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
            affine(f"layers.{stage}.downsample.norm", 4 * dim)
    affine("norm", 8 * EMBED_DIM)
    affine("head", 1000, 8 * EMBED_DIM)
    generator = torch.Generator().manual_seed(0)
    # Whole numbers, so that indices are as exact as weights.
    return {
        name: torch.randint(0, 9, shape, generator=generator).float()
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("builder", ["build_swin_fpn_backbone", "build_swin_backbone"])
def test_swins_own_checkpoint_loads_whole(builder, tmp_path):
    weights = official_swin_weights()
    torch.save({"model": weights}, tmp_path / "swin.pth")
    model = nn.ModuleDict({"backbone": build_backbone(swin_config("MODEL.BACKBONE.NAME", builder))})
    prefix = "backbone.bottom_up." if builder == "build_swin_fpn_backbone" else "backbone."

    checkpointer = SafeCheckpointer(model)
    checkpointer.load(str(tmp_path / "swin.pth"))

    state = model.state_dict()
    skipped = {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    for name, value in weights.items():
        if name not in skipped and not name.endswith("attn_mask"):
            assert torch.equal(state[prefix + name].to(value), value), name
    of_swin = [name for name in checkpointer.unfitting if name.startswith(prefix)]
    # The norms of the four outputs are a detector's own.
    assert all(name.removeprefix(prefix).startswith(("norm", "fpn_")) for name in of_swin), of_swin


def test_the_shipped_config_loads_the_address_of_swins_release(tmp_path, monkeypatch):
    """Only the download is replaced."""
    from iopath.common import file_io

    asked = []

    def download(url, directory, **kwargs):
        asked.append(url)
        torch.save({"model": official_swin_weights()}, tmp_path / "swin.pth")
        return str(tmp_path / "swin.pth")

    monkeypatch.setattr(file_io, "download", download)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    cfg = swin_config()
    model = build_model(cfg)
    SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    release = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
    assert asked == [f"{release}swin_tiny_patch4_window7_224.pth"]
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert torch.equal(
        model.state_dict()[f"backbone.bottom_up.{table}"], official_swin_weights()[table]
    )


def test_swin_detector_trains_on_its_pyramid():
    torch.manual_seed(0)
    model = build_model(swin_config())
    shapes = {name: shape.stride for name, shape in model.backbone.output_shape().items()}
    assert shapes == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    with EventStorage():
        losses = model(random_batch())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name  # noqa: PT018


def test_swins_stochastic_depth_grows_to_its_rate():
    model = build_backbone(swin_config("MODEL.SWIN.DROP_PATH_RATE", "0.4"))
    depths = [m for m in model.modules() if isinstance(m, StochasticDepth)]
    assert [m.p for m in depths] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    assert not torch.equal(model(images)["p2"], model(images)["p2"])
    model.eval()
    assert torch.equal(model(images)["p2"], model(images)["p2"])


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, set()), (2, {"patch_embed", "layers.0"})])
def test_freezing_swin_from_its_input(freeze_at, frozen):
    model = build_backbone(swin_config("MODEL.BACKBONE.FREEZE_AT", str(freeze_at))).bottom_up
    found = {
        ".".join(name.split(".")[: 2 if name.startswith("layers") else 1])
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }
    assert found == frozen


def test_adamw_decays_neither_norms_nor_position_tables():
    cfg = swin_config()
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {g["lr"] for g in optimizer.param_groups} == {0.0001}
    for name, parameter in model.named_parameters():
        spared = "norm" in name or "relative_position_bias_table" in name
        assert decay[id(parameter)] == (0.0 if spared else 0.05), name


def test_sgd_stays_the_default_and_other_names_are_told():
    cfg = load_config("faster_rcnn_R_50_FPN_1x", loss="brs", device="cpu")
    assert isinstance(Trainer.build_optimizer(cfg, nn.Linear(2, 2)), torch.optim.SGD)
    with pytest.raises(BucketRankError, match="OPTIMIZER is 'Lion'; it must be one of AdamW, SGD"):
        load_config("retinanet_tiny", device="cpu", options=["SOLVER.OPTIMIZER", "Lion"])


def deform_backbone() -> nn.Module:
    options = ["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8",
               "MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "8",
               "MODEL.FPN.OUT_CHANNELS", "16"]  # fmt: skip
    cfg = load_config("faster_rcnn_R_101_DCN_FPN_3x", loss="brs", device="cpu", options=options)
    return build_backbone(cfg, ShapeSpec(channels=3))


def test_untrained_deformable_convolutions_are_half_of_plain_ones():
    """Offsets start at 0 and masks at sigmoid(0)."""
    block = deform_backbone().bottom_up.res4[0]
    block.conv2.norm = None
    x = torch.rand(2, 32 * 2, 12, 16)[:, : block.conv2.in_channels]
    offsets_and_masks = block.conv2_offset(x)
    assert offsets_and_masks.shape[1] == 4 * 27, "4 groups of 9 x (2 offsets + 1 mask)"
    *offsets, mask = offsets_and_masks.chunk(3, dim=1)
    found = block.conv2(x, torch.cat(offsets, dim=1), mask.sigmoid())
    plain = nn.functional.conv2d(
        x, block.conv2.weight, None, block.conv2.stride, block.conv2.padding
    )
    torch.testing.assert_close(found, plain / 2)


def test_deformable_convolutions_have_the_parameters_of_detectron2s():
    """As its class that a compiled Detectron2 builds; weights of either load into the other."""
    state = deform_backbone().bottom_up.res3[0].state_dict()
    of_conv2 = {name for name in state if name.startswith("conv2")}
    norm = {f"conv2.norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    assert of_conv2 == {"conv2.weight", "conv2_offset.weight", "conv2_offset.bias", *norm}


def test_deformable_convolutions_learn_on_any_device():
    torch.manual_seed(0)
    backbone = deform_backbone().train()
    features = backbone(torch.rand(1, 3, 64, 96))
    sum(value.square().mean() for value in features.values()).backward()
    offsets = {n: p for n, p in backbone.named_parameters() if "conv2_offset.weight" in n}
    assert len(offsets) == 4 + 6 + 3, "every block of res3, res4 and res5"
    assert all(p.grad.isfinite().all() and p.grad.any() for p in offsets.values())


def test_deformable_convolutions_and_swin_run_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for backbone in (deform_backbone(), build_backbone(swin_config())):
            features = backbone(torch.rand(1, 3, 64, 96))
            assert all(value.isfinite().all() for value in features.values())
