"""Multi-scale deformable attention: plain PyTorch, and on a GPU a kernel where one is installed."""

import math
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sample_levels(
    values: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sums of bilinear samples of several feature maps; outside of a map all is 0.

    Deformable DETR (Zhu et al., ICLR 2021), equation 3, without the linear layers around it. On a
    GPU by the Triton kernels of `deformops`, where that package is installed.

    Args:
        values: [N, S, M, D], the maps of all levels, flattened one after the other, for M heads.
        shapes: height and width of each level; S is the sum of their products.
        locations: [N, Q, M, L, P, 2], x and y of each sample, 0..1 over a map.
        weights: [N, Q, M, L, P].

    Returns:
        [N, Q, M x D].
    """
    in_kernel = values.is_cuda and values.dtype != torch.float64 and _deformops_is_installed()
    sample = sample_by_deformops if in_kernel else sample_by_torch
    return sample(values, shapes, locations, weights)


@cache
def _deformops_is_installed() -> bool:
    return find_spec("deformops") is not None


def sample_by_deformops(
    values: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """`sample_levels` by `deformops` (MIT; Python 3.12 or newer): on a GPU no sample is stored."""
    from deformops.registry import msda

    sizes = torch.tensor(shapes)
    starts = sizes.prod(dim=1).cumsum(dim=0).roll(1)
    starts[0] = 0
    sizes, starts = (rows.to(values.device, non_blocking=True) for rows in (sizes, starts))
    return msda(values, sizes, starts, locations, weights)


def sample_by_torch(
    values: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """`sample_levels` by PyTorch's own bilinear sampling, which stores every sample."""
    batch, _, heads, channels = values.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [N x M, Q, L, P, 2]
    samples = []
    levels = values.split([height * width for height, width in shapes], dim=1)
    for index, (level, shape) in enumerate(zip(levels, shapes, strict=True)):
        maps = level.permute(0, 2, 3, 1).reshape(batch * heads, channels, *shape)
        samples.append(F.grid_sample(maps, grids[:, :, index], align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    sums = (torch.cat(samples, dim=3) * weights).sum(dim=3)  # [N x M, D, Q]
    return sums.view(batch, heads * channels, queries).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Attention to a few learned points around each query's reference, on every level.

    Args:
        dim: channels of queries and tokens, a multiple of `heads`.
        levels, heads, points: how many; `points` of each level and head.
    """

    def __init__(self, dim: int, levels: int, heads: int, points: int):
        super().__init__()
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Deformable DETR's start: the points of head m lie in direction m, ever further away."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=1)
        directions = directions / directions.abs().amax(dim=1, keepdim=True)
        steps = torch.arange(1, self.points + 1).view(-1, 1)
        offsets = (directions[:, None, None] * steps).expand(-1, self.levels, -1, -1)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        # All but zero, so that what tells levels and places apart learns from the first step on.
        nn.init.normal_(self.attention_weights.weight, std=0.001)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Tensor,
        references: Tensor,
        tokens: Tensor,
        padding: Tensor,
        shapes: list[tuple[int, int]],
    ) -> Tensor:
        """
        Args:
            queries: [N, Q, dim].
            references: of each query on each level, [N, Q, L, 2] points x, y, or [N, Q, L, 4] boxes
                cx, cy, w, h, 0..1 over the map. Offsets are counted in pixels of a level around a
                point, in parts of half the box around a box.
            tokens: [N, S, dim], the levels one after the other.
            padding: [N, S], True where there is no image: such tokens are 0.
            shapes: height and width of each level.

        Returns:
            [N, Q, dim].
        """
        spread = (self.heads, self.levels, self.points)
        # Samples in float32 also under autocast: in half precision a location is off by pixels.
        precision = torch.promote_types(references.dtype, torch.float32)
        offsets = self.sampling_offsets(queries).to(precision).unflatten(2, (*spread, 2))
        weights = self.attention_weights(queries).to(precision).unflatten(2, (self.heads, -1))
        weights = weights.softmax(dim=3).unflatten(3, spread[1:])
        centers = references[:, :, None, :, None, :2]
        if references.shape[-1] == 2:
            sizes = references.new_tensor([(width, height) for height, width in shapes])
            locations = centers + offsets / sizes[:, None]
        else:
            half_boxes = references[:, :, None, :, None, 2:] / 2
            locations = centers + offsets / self.points * half_boxes
        values = self.value_proj(tokens).masked_fill(padding.unsqueeze(2), 0)
        values = values.to(precision).unflatten(2, (self.heads, -1))
        return self.output_proj(sample_levels(values, shapes, locations, weights))
