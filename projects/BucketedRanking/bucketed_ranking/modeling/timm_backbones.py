"""Backbones of timm with FPN; timm is imported when one is built."""

from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from ..errors import BucketRankError
from ..pretrained import describe_weights
from .backbones import build_fpn


class TimmBackbone(Backbone):
    """The stages of a model of timm, by FPN's names: feature cK has stride 2^K.

    Args:
        name: of the model, such as "tf_efficientnet_lite0"; "resnet50.a1_in1k" names its weights
            too. Its parameters are random: a checkpointer loads them.
        out_features: of "c1" (stride 2) to "c5" (stride 32).
        in_channels: of the images.
        freeze_at: what computes cK for K up to this stays as it is, norm statistics too; 0:
            nothing. As in Detectron2, whose stem is 1 and res2 is 2.
        freeze_bn: batch norms are fixed maps, by the statistics and factors of their weights.

    Raises:
        BucketRankError: timm has no such model, or the model has no such feature.
    """

    def __init__(
        self,
        name: str,
        out_features: list[str],
        *,
        in_channels: int = 3,
        freeze_at: int = 0,
        freeze_bn: bool = False,
    ):
        import timm

        super().__init__()
        describe_weights(name)  # tells an unknown name
        try:
            model = timm.create_model(name, features_only=True, in_chans=in_channels)
        except RuntimeError as error:
            raise BucketRankError(
                f"timm's {name} (MODEL.TIMM.NAME) gives no features of several strides, which FPN "
                f"needs: {error}"
            ) from error
        info = model.feature_info
        names = [f"c{stride.bit_length() - 1}" for stride in info.reduction()]
        missing = [feature for feature in out_features if feature not in names]
        if missing:
            raise BucketRankError(
                f"timm's {name} has no feature {missing[0]!r} (MODEL.FPN.IN_FEATURES); it has "
                f"{', '.join(names)}."
            )
        frozen = [info.module_name(i) for i, c in enumerate(names) if int(c[1:]) <= freeze_at]
        if frozen:
            timm.utils.freeze(model, list(_modules_up_to(model, frozen[-1])))
        if freeze_bn:
            # Detectron2's own converter drops the activation that timm fuses into its norms.
            model = timm.layers.freeze_batch_norm_2d(model)
        self.model = model
        self._names = names
        self._out_features = out_features
        self._out_feature_strides = dict(zip(names, info.reduction(), strict=True))
        self._out_feature_channels = dict(zip(names, info.channels(), strict=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[N, C, H, W] -> {feature: [N, channels, H / stride, W / stride]}."""
        features = dict(zip(self._names, self.model(x), strict=True))
        return {name: features[name] for name in self._out_features}


def _modules_up_to(model: nn.Module, last: str, prefix: str = "") -> Iterator[str]:
    """The names of the modules, in order, that are done when `last` is; containers are opened.

    timm's flattened feature models call "stages.0" "stages_0".
    """
    for child_name, child in model.named_children():
        name = f"{prefix}{child_name}"
        done = name in (last, last.replace(".", "_"))
        if not done and last.startswith(f"{name}."):
            yield from _modules_up_to(child, last, f"{name}.")
            return
        yield name
        if done:
            return


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """MODEL.TIMM, with the features MODEL.FPN.IN_FEATURES."""
    return TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        cfg.MODEL.FPN.IN_FEATURES,
        in_channels=input_shape.channels,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        freeze_bn=cfg.MODEL.TIMM.FREEZE_BN,
    )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MODEL.TIMM with FPN over the features MODEL.FPN.IN_FEATURES, and p6 by pooling."""
    return build_fpn(cfg, build_timm_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_timm_fpn_p6p7_from_p5_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """As :func:`build_timm_fpn_backbone`, with p6 and p7 by convolutions from p5."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    top_block = LastLevelP6P7(channels, channels, in_feature="p5")
    return build_fpn(cfg, build_timm_backbone(cfg, input_shape), top_block)
