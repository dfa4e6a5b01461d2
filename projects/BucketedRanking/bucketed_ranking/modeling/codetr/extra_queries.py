"""Queries that the positives of an auxiliary head make, for a decoder pass of their own."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...criterion import positive_rows
from .assignment import Assigned, normalised_boxes
from .positions import inverse_sigmoid
from .query_head import BoxEmbedding

_FEWEST = 9


class Candidates(NamedTuple):
    """What a head has made of an image's R anchors or proposals: boxes are x1, y1, x2, y2."""

    boxes: Tensor
    """[R, 4]"""
    labels: Tensor
    """[R]: class index, C for background, -1 for those that take no part."""
    targets: Tensor
    """[R, 4]: the object's box, of any value for a negative."""


class Chosen(NamedTuple):
    """Q candidates of each of N images; an image that has too few is filled up with empty boxes."""

    rows: Tensor
    """[N, Q]: which of the image's candidates each is."""
    boxes: Tensor
    """[N, Q, 4], x1, y1, x2, y2."""
    labels: Tensor
    """[N, Q]: class index, C for a negative, -1 for what fills up."""
    targets: Tensor
    """[N, Q, 4], x1, y1, x2, y2; of any value where there is no object."""


def choose_queries(candidates: list[Candidates], num_classes: int, at_most: int) -> Chosen:
    """The positives of every image, drawn at random where there are more than `at_most`.

    All images get as many queries as the one with most positives, but 9 at least: negatives, drawn
    at random, fill up what is missing (Zong et al., Co-DETR, ICCV 2023, and its code).
    """
    positives = [_draw(positive_rows(each.labels, num_classes), at_most) for each in candidates]
    count = min(at_most, max(_FEWEST, *map(len, positives)))
    images = []
    for each, chosen in zip(candidates, positives, strict=True):
        negatives = torch.nonzero(each.labels == num_classes).squeeze(1)
        rows = torch.cat([chosen, _draw(negatives, count - len(chosen))])
        missing = count - len(rows)
        images.append(
            Chosen(
                F.pad(rows, (0, missing)),
                F.pad(each.boxes[rows], (0, 0, 0, missing)),
                F.pad(each.labels[rows], (0, missing), value=-1),
                F.pad(each.targets[rows], (0, 0, 0, missing)),
            )
        )
    return Chosen(*map(torch.stack, zip(*images, strict=True)))


def _draw(rows: Tensor, at_most: int) -> Tensor:
    """All rows in their order, or `at_most` of them at random."""
    if len(rows) <= at_most:
        return rows
    return rows[torch.randperm(len(rows), device=rows.device)[:at_most]]


def assigned_to(
    chosen: Chosen, image_sizes: list[tuple[int, int]], num_classes: int, layers: int
) -> Assigned:
    """What every decoder layer is to predict for the queries: what they were chosen for."""
    labels = chosen.labels.flatten()
    positives = positive_rows(labels, num_classes)
    targets = torch.cat(
        [normalised_boxes(*each) for each in zip(chosen.targets, image_sizes, strict=True)]
    )
    parts = labels, positives, targets[positives]
    return Assigned(*(part.expand(layers, *part.shape) for part in parts))


class ExtraQueryEmbedding(nn.Module):
    """Position and content of the queries of one auxiliary head."""

    def __init__(self, dim: int):
        super().__init__()
        self.boxes = BoxEmbedding(dim)
        self.feature_linear = nn.Linear(dim, dim)
        self.feature_norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.feature_linear.weight)
        # Tells the head's queries from others; a single number, as in the published models.
        self.offset = nn.Parameter(torch.randn(1))

    def forward(self, boxes: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            boxes: [N, Q, 4] normalised, perhaps reaching out of the image.
            features: [N, Q, dim], what the encoder sees of each.

        Returns:
            Content and position, both [N, Q, dim].
        """
        position, content = self.boxes(inverse_sigmoid(boxes).sigmoid())
        content = content + self.feature_norm(self.feature_linear(features))
        return content, position + self.offset
