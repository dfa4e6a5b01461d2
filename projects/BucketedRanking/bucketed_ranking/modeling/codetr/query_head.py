"""The transformer of Deformable DETR in two stages, and what it predicts."""

import math
from typing import NamedTuple

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from .layers import DecoderLayer, Encoder
from .positions import Levels, inverse_sigmoid, levels_of, sines_of_boxes, token_boxes

_PRIOR_PROB = 0.01


class Predictions(NamedTuple):
    """What layers predict for Q queries each: boxes are cx, cy, w, h, 0..1 over the image."""

    logits: Tensor
    """[layers, N, Q, classes]"""
    boxes: Tensor
    """[layers, N, Q, 4]"""


class Memory(NamedTuple):
    """The encoder's output."""

    tokens: Tensor
    """[N, S, dim]"""
    levels: Levels


class BoxEmbedding(nn.Module):
    """Position and content of the queries that start from boxes."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(2 * dim, 2 * dim)
        self.norm = nn.LayerNorm(2 * dim)
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised boxes [N, Q, 4] -> two [N, Q, dim]."""
        sines = sines_of_boxes(boxes, self.linear.in_features // 2)
        position, content = self.norm(self.linear(sines)).chunk(2, dim=2)
        return position, content


def _box_branch(dim: int) -> nn.Sequential:
    branch = nn.Sequential(
        nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4)
    )
    # All but zero: a box starts from where it was, and the layers before learn from step one on.
    nn.init.normal_(branch[-1].weight, std=0.001)
    nn.init.zeros_(branch[-1].bias)
    return branch


class QueryHead(nn.Module):
    """Encoder, and a decoder that refines the boxes of queries layer by layer.

    Deformable DETR (Zhu et al., ICLR 2021) in two stages: the queries start from the best boxes
    that the encoder's tokens predict. Their content is learned ("mixed selection"), and what a
    layer predicts trains the layer before, too ("look forward twice"), both from DINO (Zhang et
    al., ICLR 2023).

    Args:
        dim: channels of tokens and queries.
        queries: how many; a batch of fewer tokens has as many as tokens.
        levels: number of feature maps.
        heads, points: of the attention; points of each level and head.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        feedforward_dim: int,
        levels: int,
        heads: int,
        points: int,
        encoder_layers: int,
        decoder_layers: int,
        queries: int,
    ):
        super().__init__()
        shape = dim, feedforward_dim, levels, heads, points
        self.encoder = Encoder(*shape, encoder_layers)
        self.memory_linear = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.memory_linear.weight)
        self.box_embedding = BoxEmbedding(dim)
        self.query_embedding = nn.Embedding(queries, dim)
        self.decoder_layers = nn.ModuleList(DecoderLayer(*shape) for _ in range(decoder_layers))
        # One of each for every decoder layer, and the last for the encoder.
        self.class_branches = nn.ModuleList(
            nn.Linear(dim, num_classes) for _ in range(decoder_layers + 1)
        )
        self.box_branches = nn.ModuleList(_box_branch(dim) for _ in range(decoder_layers + 1))
        for branch in self.class_branches:
            nn.init.constant_(branch.bias, -math.log((1 - _PRIOR_PROB) / _PRIOR_PROB))

    @classmethod
    def from_config(cls, cfg):
        codetr = cfg.MODEL.CODETR
        return {
            "num_classes": codetr.NUM_CLASSES,
            "dim": codetr.HIDDEN_DIM,
            "feedforward_dim": codetr.FEEDFORWARD_DIM,
            "levels": codetr.NUM_LEVELS,
            "heads": codetr.NUM_HEADS,
            "points": codetr.NUM_POINTS,
            "encoder_layers": codetr.ENCODER_LAYERS,
            "decoder_layers": codetr.DECODER_LAYERS,
            "queries": codetr.NUM_QUERIES,
        }

    def encode(
        self,
        features: list[Tensor],
        image_sizes: list[tuple[int, int]],
        padded_size: tuple[int, int],
    ) -> Memory:
        """Feature maps [N, dim, H, W] of images of these heights and widths, before and after
        padding."""
        levels = levels_of(features, image_sizes, padded_size)
        tokens = torch.cat([feature.flatten(2).transpose(1, 2) for feature in features], dim=1)
        return Memory(self.encoder(tokens, levels), levels)

    def propose(self, memory: Memory) -> tuple[Predictions, Tensor]:
        """A box of every token: predictions [1, N, S], and a mask [N, S] of those that count."""
        starts, usable = token_boxes(memory.levels)
        tokens = memory.tokens.masked_fill(~usable.unsqueeze(2), 0)
        tokens = self.memory_norm(self.memory_linear(tokens))
        logits, boxes = self.class_branches[-1](tokens), self.box_branches[-1](tokens) + starts
        return Predictions(logits.unsqueeze(0), boxes.sigmoid().unsqueeze(0)), usable

    def decode_best(self, proposed: Predictions, usable: Tensor, memory: Memory) -> Predictions:
        """What the decoder makes of the proposals with the best scores of the first class, which
        stands for all (see :meth:`propose`)."""
        scores = proposed.logits[0, :, :, 0].detach().masked_fill(~usable, -math.inf)
        count = min(self.query_embedding.num_embeddings, scores.shape[1])
        best = scores.topk(count, dim=1).indices
        boxes = proposed.boxes[0].detach()
        boxes = boxes.gather(1, best.unsqueeze(2).expand(-1, -1, 4))
        position, _ = self.box_embedding(boxes)
        content = self.query_embedding.weight[:count].expand(len(boxes), -1, -1)
        return self.decode(content, position, boxes, memory)

    def decode(
        self, content: Tensor, position: Tensor, boxes: Tensor, memory: Memory
    ) -> Predictions:
        """Queries of content and position [N, Q, dim] that start from normalised boxes [N, Q, 4].

        A layer adds what it predicts to the logits of the boxes of the layer before. It attends
        around these boxes without teaching that layer anything, but its own boxes do: they train
        both layers, and no earlier one.
        """
        queries, start, before = content, boxes, boxes
        logits, refined = [], []
        for index, layer in enumerate(self.decoder_layers):
            queries = layer(queries, position, start, *memory)
            logits.append(self.class_branches[index](queries))
            change = self.box_branches[index](queries)
            refined.append((change + inverse_sigmoid(before)).sigmoid())
            before = (change + inverse_sigmoid(start)).sigmoid()
            start = before.detach()
        return Predictions(torch.stack(logits), torch.stack(refined))
