"""Backbones that Detectron2 can build but does not register for its config system."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock


@BACKBONE_REGISTRY.register()
def build_small_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """A ResNet of basic blocks with few channels, and FPN: trains from scratch on a CPU.

    Widths and depths come from MODEL.SMALL_RESNET, normalisation from MODEL.RESNETS.NORM, the
    pyramid from MODEL.FPN. There is no extra level on top.
    """
    channels, blocks = cfg.MODEL.SMALL_RESNET.CHANNELS, cfg.MODEL.SMALL_RESNET.BLOCKS
    norm = cfg.MODEL.RESNETS.NORM
    stem = BasicStem(in_channels=input_shape.channels, out_channels=channels[0], norm=norm)
    stages = []
    for index, (out_channels, num_blocks) in enumerate(zip(channels, blocks, strict=True)):
        stage = ResNet.make_stage(
            BasicBlock,
            num_blocks,
            stride_per_block=[1 if index == 0 else 2] + [1] * (num_blocks - 1),
            in_channels=channels[max(index - 1, 0)],
            out_channels=out_channels,
            norm=norm,
        )
        stages.append(stage)
    in_features = cfg.MODEL.FPN.IN_FEATURES
    return FPN(
        bottom_up=ResNet(stem, stages, out_features=in_features),
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
