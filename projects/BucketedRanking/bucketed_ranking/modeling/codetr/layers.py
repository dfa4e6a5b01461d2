"""Layers of the encoder and of the decoder; without dropout, as Co-DETR trains them."""

import torch
from torch import Tensor, nn

from .deformable_attention import DeformableAttention
from .positions import Levels, on_levels, sines_of_tokens, token_centers


class _FeedForward(nn.Sequential):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__(nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim))
        nn.init.xavier_uniform_(self[0].weight)
        nn.init.xavier_uniform_(self[2].weight)


class EncoderLayer(nn.Module):
    """Tokens attend to tokens; normalisation comes last in each part."""

    def __init__(self, dim: int, feedforward_dim: int, levels: int, heads: int, points: int):
        super().__init__()
        self.attention = DeformableAttention(dim, levels, heads, points)
        self.norm1 = nn.LayerNorm(dim)
        self.feedforward = _FeedForward(dim, feedforward_dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self, tokens: Tensor, positions: Tensor, references: Tensor, levels: Levels
    ) -> Tensor:
        """Tokens and positions [N, S, dim]; references as :class:`DeformableAttention` has them."""
        queries = tokens + positions
        attended = self.attention(queries, references, tokens, levels.padding, levels.shapes)
        tokens = self.norm1(tokens + attended)
        return self.norm2(tokens + self.feedforward(tokens))


class Encoder(nn.Module):
    """The deformable encoder: feature maps as tokens, each knowing its level and place."""

    def __init__(
        self, dim: int, feedforward_dim: int, levels: int, heads: int, points: int, layers: int
    ):
        super().__init__()
        self.dim = dim
        self.level_embeds = nn.Parameter(torch.randn(levels, dim))
        self.layers = nn.ModuleList(
            EncoderLayer(dim, feedforward_dim, levels, heads, points) for _ in range(layers)
        )

    def forward(self, tokens: Tensor, levels: Levels) -> Tensor:
        """[N, S, dim], the levels one after the other -> [N, S, dim]."""
        positions = [
            sines + embed
            for sines, embed in zip(
                sines_of_tokens(levels, self.dim), self.level_embeds, strict=True
            )
        ]
        positions = torch.cat(positions, dim=1)
        references = on_levels(token_centers(levels), levels)
        for layer in self.layers:
            tokens = layer(tokens, positions, references, levels)
        return tokens


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to the tokens around their boxes."""

    def __init__(self, dim: int, feedforward_dim: int, levels: int, heads: int, points: int):
        super().__init__()
        self.self_attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(dim, levels, heads, points)
        self.norm2 = nn.LayerNorm(dim)
        self.feedforward = _FeedForward(dim, feedforward_dim)
        self.norm3 = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.self_attention.out_proj.weight)

    def forward(
        self, queries: Tensor, positions: Tensor, boxes: Tensor, memory: Tensor, levels: Levels
    ) -> Tensor:
        """Queries and positions [N, Q, dim], normalised boxes [N, Q, 4], memory [N, S, dim]."""
        placed = queries + positions
        attended, _ = self.self_attention(placed, placed, queries, need_weights=False)
        queries = self.norm1(queries + attended)
        attended = self.cross_attention(
            queries + positions, on_levels(boxes, levels), memory, levels.padding, levels.shapes
        )
        queries = self.norm2(queries + attended)
        return self.norm3(queries + self.feedforward(queries))
