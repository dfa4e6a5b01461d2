"""Detectron2's matching of boxes to objects, in bounded memory.

Its heads hold a matrix of G objects x R boxes and several more of that size in between: with 30,000
objects in one picture these are tens of gigabytes. Beyond `BLOCK` entries they are handed a
stand-in, of which its matcher looks at one block after the other; the matches are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import retinanet
from detectron2.modeling.proposal_generator import rpn
from detectron2.modeling.roi_heads import cascade_rcnn, roi_heads
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

# Entries of a matrix: all of it up to about 250 objects in a picture of COCO's size.
BLOCK = 2**26

_match_matrix = Matcher.__call__


@dataclass(frozen=True)
class BlockwiseIoU:
    """The IoU of `objects` [G] with `boxes` [R], computed in blocks [G, r]."""

    objects: Boxes
    boxes: Boxes

    def blocks(self) -> Iterator[Tensor]:
        for rows in block_slices(len(self.boxes), len(self.objects)):
            yield pairwise_iou(self.objects, self.boxes[rows])


def block_slices(count: int, width: int) -> list[slice]:
    """Slices of 0..`count`, of as many rows as `BLOCK` entries make, `width` in each row."""
    rows = max(1, BLOCK // max(1, width))
    return [slice(start, start + rows) for start in range(0, max(1, count), rows)]


def bounded_pairwise_iou(objects: Boxes, boxes: Boxes) -> Tensor | BlockwiseIoU:
    """:func:`pairwise_iou` for a :class:`Matcher` alone."""
    is_large = len(objects) * len(boxes) > BLOCK
    return BlockwiseIoU(objects, boxes) if is_large else pairwise_iou(objects, boxes)


def match(matcher: Matcher, quality: Tensor | BlockwiseIoU) -> tuple[Tensor, Tensor]:
    """See :meth:`Matcher.__call__`."""
    if isinstance(quality, Tensor):
        return _match_matrix(matcher, quality)
    plain = Matcher(matcher.thresholds[1:-1], matcher.labels)
    matches, labels = map(
        torch.cat, zip(*(_match_matrix(plain, block) for block in quality.blocks()), strict=True)
    )
    if matcher.allow_low_quality_matches:
        best = reduce(torch.maximum, (block.amax(dim=1) for block in quality.blocks()))
        chosen = [(block == best.unsqueeze(1)).any(dim=0) for block in quality.blocks()]
        labels[torch.cat(chosen)] = 1
    return matches, labels


def bound_matching() -> None:
    """Make Detectron2's heads match in bounded memory."""
    Matcher.__call__ = match
    for module in (rpn, retinanet, roi_heads, cascade_rcnn):
        module.pairwise_iou = bounded_pairwise_iou
