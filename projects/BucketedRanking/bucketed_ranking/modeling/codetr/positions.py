"""Where tokens and boxes are: sines of positions, reference points, the encoder's own boxes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_EPSILON = 1e-5
_TEMPERATURE = 10000
# Half a pixel, so that the positions of an image's pixels are their centres.
_OFFSET, _MIN_SIZE = -0.5, 1e-6


class Levels(NamedTuple):
    """Feature maps of N images of different sizes, padded to the largest: what is where.

    S is the number of all their pixels, the tokens; L that of the levels.
    """

    shapes: list[tuple[int, int]]
    """Height and width of each level."""
    padding: Tensor
    """[N, S] bool, True where there is no image."""
    valid_ratios: Tensor
    """[N, L, 2]: the part of a map's width and height that the image fills."""

    def split(self, tokens: Tensor) -> list[Tensor]:
        """[N, S, ...] -> one [N, H x W, ...] a level."""
        return list(tokens.split([height * width for height, width in self.shapes], dim=1))

    def maps(self, tokens: Tensor) -> list[Tensor]:
        """[N, S, C] -> one [N, C, H, W] a level."""
        pairs = zip(self.split(tokens), self.shapes, strict=True)
        return [part.transpose(1, 2).unflatten(2, shape) for part, shape in pairs]


def levels_of(
    features: list[Tensor], image_sizes: list[tuple[int, int]], padded_size: tuple[int, int]
) -> Levels:
    """Which tokens of feature maps [N, C, H, W] belong to the images, by their heights and widths
    before and after padding."""
    of_image = features[0].new_ones(len(image_sizes), 1, *padded_size)
    for row, (height, width) in zip(of_image, image_sizes, strict=True):
        row[:, :height, :width] = 0
    shapes = [tuple(feature.shape[-2:]) for feature in features]
    masks = [F.interpolate(of_image, size=shape).squeeze(1) > 0 for shape in shapes]
    precision = torch.promote_types(features[0].dtype, torch.float32)
    ratios = [
        torch.stack(
            [(~mask[:, 0]).to(precision).mean(1), (~mask[:, :, 0]).to(precision).mean(1)], 1
        )
        for mask in masks
    ]
    padding = torch.cat([mask.flatten(1) for mask in masks], dim=1)
    return Levels(shapes, padding, torch.stack(ratios, dim=1))


def inverse_sigmoid(values: Tensor) -> Tensor:
    """The logit of values in 0..1, bounded."""
    values = values.clamp(min=0, max=1)
    return torch.log(values.clamp(min=_EPSILON) / (1 - values).clamp(min=_EPSILON))


def _sines(values: Tensor, channels: int) -> Tensor:
    """Sine and cosine, in turns, of angles at `channels` / 2 frequencies: [...] -> [..., channels].

    "Attention Is All You Need" (Vaswani et al., 2017), section 3.5.
    """
    steps = torch.arange(channels, device=values.device, dtype=values.dtype)
    angles = values.unsqueeze(-1) / _TEMPERATURE ** (2 * (steps // 2) / channels)
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def sines_of_tokens(levels: Levels, channels: int) -> list[Tensor]:
    """Sines of each token's place, relative to its image: one [N, H x W, channels] a level."""
    positions = []
    for padding, shape in zip(levels.split(levels.padding), levels.shapes, strict=True):
        inside = (~padding).unflatten(1, shape).to(levels.valid_ratios.dtype)
        sines = []
        for dim in (1, 2):  # y, then x
            counts = inside.cumsum(dim=dim)
            size = counts.narrow(dim, -1, 1) + _MIN_SIZE
            sines.append(_sines((counts + _OFFSET) / size * 2 * math.pi, channels // 2))
        positions.append(torch.cat(sines, dim=3).flatten(1, 2))
    return positions


def sines_of_boxes(boxes: Tensor, channels: int) -> Tensor:
    """Sines of normalised cx, cy, w, h: [..., 4] -> [..., 2 x channels]."""
    return _sines(boxes * 2 * math.pi, channels // 2).flatten(-2)


def token_centers(levels: Levels) -> Tensor:
    """x and y of each token's centre, 0..1 over its image (more in the padding): [N, S, 2]."""
    centers = []
    for index, (height, width) in enumerate(levels.shapes):
        ratios = levels.valid_ratios[:, None, index]
        y = torch.arange(height, device=ratios.device, dtype=ratios.dtype) + 0.5
        x = torch.arange(width, device=ratios.device, dtype=ratios.dtype) + 0.5
        points = torch.stack(torch.meshgrid(x / width, y / height, indexing="xy"), dim=2)
        centers.append(points.flatten(0, 1) / ratios)
    return torch.cat(centers, dim=1)


def on_levels(references: Tensor, levels: Levels) -> Tensor:
    """References over an image, points [N, Q, 2] or boxes [N, Q, 4], over each padded map:
    [N, Q, L, 2 or 4]."""
    ratios = levels.valid_ratios.repeat(1, 1, references.shape[2] // 2)
    return references.unsqueeze(2) * ratios.unsqueeze(1)


def token_boxes(levels: Levels) -> tuple[Tensor, Tensor]:
    """The boxes that the encoder's tokens start from, and which tokens may propose one.

    They are squares of 0.05 of the image's width and height, twice as large on each next level.

    Returns:
        Logits of normalised cx, cy, w, h, [N, S, 4], of any value where there is no proposal, and a
        mask [N, S]: not in the padding, nor within 0.01 of the border.
    """
    centers = token_centers(levels)
    sizes = torch.cat(
        [
            centers.new_full((height * width,), 0.05 * 2**index)
            for index, (height, width) in enumerate(levels.shapes)
        ]
    )
    boxes = torch.cat([centers, sizes.view(1, -1, 1).expand_as(centers)], dim=2)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(dim=2) & ~levels.padding
    return inverse_sigmoid(boxes), usable
