"""Backbones that Detectron2 can build but does not register for its config system."""

from unittest.mock import patch

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import (
    FPN,
    Backbone,
    BasicStem,
    ResNet,
    SwinTransformer,
    build_resnet_backbone,
    resnet,
)
from detectron2.modeling.backbone.fpn import (
    LastLevelMaxPool,
    LastLevelP6P7,
    build_resnet_fpn_backbone,
)
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, StochasticDepth


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_p6p7_from_p5_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Detectron2's build_retinanet_resnet_fpn_backbone, but P6 comes from P5, not from res5."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    top_block = LastLevelP6P7(channels, channels, in_feature="p5")
    return build_fpn(cfg, build_resnet_backbone(cfg, input_shape), top_block)


@BACKBONE_REGISTRY.register()
def build_small_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """A ResNet of basic blocks with few channels: trains from scratch on a CPU.

    Widths and depths come from MODEL.SMALL_RESNET, normalisation from MODEL.RESNETS.NORM; its
    features are MODEL.FPN.IN_FEATURES.
    """
    channels, blocks = cfg.MODEL.SMALL_RESNET.CHANNELS, cfg.MODEL.SMALL_RESNET.BLOCKS
    norm = cfg.MODEL.RESNETS.NORM
    stem = BasicStem(in_channels=input_shape.channels, out_channels=channels[0], norm=norm)
    stages = []
    for index, (out_channels, num_blocks) in enumerate(zip(channels, blocks, strict=True)):
        stage = ResNet.make_stage(
            resnet.BasicBlock,
            num_blocks,
            stride_per_block=[1 if index == 0 else 2] + [1] * (num_blocks - 1),
            in_channels=channels[max(index - 1, 0)],
            out_channels=out_channels,
            norm=norm,
        )
        stages.append(stage)
    return ResNet(stem, stages, out_features=cfg.MODEL.FPN.IN_FEATURES)


@BACKBONE_REGISTRY.register()
def build_small_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """:func:`build_small_resnet_backbone` with FPN; there is no extra level on top."""
    return build_fpn(cfg, build_small_resnet_backbone(cfg, input_shape))


class _ModulatedDeformConv(DeformConv2d):
    """Detectron2's `ModulatedDeformConv` by torchvision: on every device, compiled or not."""

    def __init__(self, *args, deformable_groups: int, norm: nn.Module | None, **kwargs):
        super().__init__(*args, **kwargs)  # torchvision reads the groups off the offsets
        self.norm = norm

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        # In float32 also under autocast: the operator has no bfloat16 on the CPU.
        x = super().forward(x.float(), offset.float(), mask.float())
        return x if self.norm is None else self.norm(x)


@BACKBONE_REGISTRY.register()
def build_deform_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ResNet-FPN with modulated deformable convolutions that run on every device.

    As `build_resnet_fpn_backbone` with MODEL.RESNETS.DEFORM_ON_PER_STAGE and DEFORM_MODULATED
    (Zhu et al., "Deformable ConvNets v2", CVPR 2019), with the same parameters; Detectron2's own
    operator needs a GPU, and Detectron2 compiled for it.
    """
    # Detectron2's block takes the class by this name; without _C it is a dummy.
    with patch.object(resnet, "ModulatedDeformConv", _ModulatedDeformConv):
        return build_resnet_fpn_backbone(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg, input_shape: ShapeSpec) -> SwinTransformer:
    """Swin Transformer (Liu et al., ICCV 2021) as MODEL.SWIN describes it.

    Its features p0 to p3 have strides 4 to 32. MODEL.BACKBONE.FREEZE_AT counts the patch
    embedding as 1 and each stage as one more.
    """
    swin = cfg.MODEL.SWIN
    model = SwinTransformer(
        in_chans=input_shape.channels,
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        window_size=swin.WINDOW_SIZE,
        drop_path_rate=0.0,
        out_indices=[int(name.removeprefix("p")) for name in swin.OUT_FEATURES],
        frozen_stages=cfg.MODEL.BACKBONE.FREEZE_AT or -1,
    )
    # Detectron2's own stochastic depth needs timm; and it misspells this attribute.
    blocks = [block for stage in model.layers for block in stage.blocks]
    rates = torch.linspace(0, swin.DROP_PATH_RATE, len(blocks)).tolist()
    for block, rate in zip(blocks, rates, strict=True):
        block.drop_path = StochasticDepth(rate, mode="row")
    model._size_divisibility = 32
    return model


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """:func:`build_swin_backbone` with FPN and, as in Detectron2's ResNet-FPN, p6 by pooling."""
    return build_fpn(cfg, build_swin_backbone(cfg, input_shape), LastLevelMaxPool())


def build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module | None = None) -> FPN:
    """FPN over a backbone, as MODEL.FPN describes it."""
    fpn = cfg.MODEL.FPN
    return FPN(
        bottom_up,
        fpn.IN_FEATURES,
        fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=top_block,
        fuse_type=fpn.FUSE_TYPE,
    )
