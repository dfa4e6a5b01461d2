"""The channel mapper between a backbone and a DETR encoder."""

import math

from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn


class ChannelMapper(nn.Module):
    """Features of a backbone, each by a 1x1 convolution, in one number of channels; then more
    levels, each half the size of the one before, the first of them from the backbone's last.

    Args:
        input_shape: of the backbone's features, finest first.
        channels: of every output, in 32 groups of normalisation.
        levels: how many outputs there are, at least as many as features.
    """

    def __init__(self, input_shape: list[ShapeSpec], channels: int, levels: int):
        super().__init__()
        self.convs = nn.ModuleList(
            _normalised(shape.channels, channels, kernel_size=1) for shape in input_shape
        )
        extra = levels - len(input_shape)
        sources = [input_shape[-1].channels, *[channels] * (extra - 1)][:extra]
        self.extra_convs = nn.ModuleList(
            _normalised(source, channels, kernel_size=3, stride=2, padding=1) for source in sources
        )
        finest = int(math.log2(input_shape[0].stride))
        self.names = [f"p{finest + index}" for index in range(levels)]
        """Names of the levels, such as "p3" for stride 8."""

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """[N, Ci, Hi, Wi] of each feature -> [N, channels, H, W] of each level."""
        levels = [conv(each) for conv, each in zip(self.convs, features, strict=True)]
        source = features[-1]
        for conv in self.extra_convs:
            source = conv(source)
            levels.append(source)
        return levels


def _normalised(in_channels: int, out_channels: int, **convolution: int) -> Conv2d:
    norm = nn.GroupNorm(32, out_channels)
    conv = Conv2d(in_channels, out_channels, bias=False, norm=norm, **convolution)
    nn.init.xavier_uniform_(conv.weight)
    return conv
