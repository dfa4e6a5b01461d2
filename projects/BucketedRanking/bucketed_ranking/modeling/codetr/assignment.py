"""Which query is to find which object: the optimal assignment of DETR."""

from typing import NamedTuple

import torch
from detectron2.structures import Instances
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.profiler import record_function
from torchvision.ops import box_convert, generalized_box_iou

from .query_head import Predictions

ASSIGNMENT_MARK = "bucketrank.assignment"
"""Name under which ``torch.profiler`` finds the assignment of a call."""

_ALPHA, _GAMMA = 0.25, 2.0
_MIN_PROBABILITY = 1e-12
# The cost of what must not be matched, or is not finite: the assignment needs finite numbers.
_FORBIDDEN = 1e6


class Objects(NamedTuple):
    """The objects of an image, G of them."""

    boxes: Tensor
    """[G, 4] normalised cx, cy, w, h."""
    classes: Tensor
    """[G]"""


def objects_of(instances: list[Instances]) -> list[Objects]:
    """The ground truth of images, relative to their sizes before padding."""
    return [
        Objects(normalised_boxes(each.gt_boxes.tensor, each.image_size), each.gt_classes)
        for each in instances
    ]


def normalised_boxes(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """x1, y1, x2, y2 in pixels [R, 4] -> cx, cy, w, h in parts of the image's height and width."""
    height, width = image_size
    return box_convert(boxes / boxes.new_tensor([width, height] * 2), "xyxy", "cxcywh")


class Assigned(NamedTuple):
    """What the queries of all images are to predict, layer by layer; R is N x Q."""

    labels: Tensor
    """[layers, R]: class index, C for no object, -1 for queries that take no part."""
    positives: Tensor
    """[layers, P]: the rows of the queries that have an object."""
    boxes: Tensor
    """[layers, P, 4]: normalised boxes of these objects."""


class HungarianAssigner:
    """One query an object, at the lowest cost in total (Carion et al., DETR, ECCV 2020).

    The cost is `class_cost` x focal + `l1_cost` x L1 of the normalised boxes + `giou_cost` x
    (-GIoU), the first of them what focal loss changes if the query is a positive.
    """

    def __init__(self, class_cost: float, l1_cost: float, giou_cost: float):
        self.class_cost, self.l1_cost, self.giou_cost = class_cost, l1_cost, giou_cost

    @torch.no_grad()
    def __call__(
        self,
        predictions: Predictions,
        objects: list[Objects],
        usable: Tensor | None = None,
    ) -> Assigned:
        """Assign the objects of N images to the queries of every layer.

        Args:
            usable: [N, Q], False for queries that take no part; None: all do.
        """
        with record_function(ASSIGNMENT_MARK):
            queries, indices = self._match(predictions, objects, usable)
        layers, batch, count, num_classes = predictions.logits.shape
        labels = queries.new_full((layers, batch * count), num_classes)
        if usable is not None:
            labels.masked_fill_(~usable.flatten(), -1)
        classes = torch.cat([each.classes for each in objects])
        boxes = torch.cat([each.boxes for each in objects])
        labels.scatter_(1, queries, classes[indices])
        return Assigned(labels, queries, boxes[indices])

    def _match(
        self, predictions: Predictions, objects: list[Objects], usable: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rows of queries among N x Q and of objects among those of all images, [layers, P]."""
        layers, _, count = predictions.logits.shape[:3]
        costs = [
            self._costs(predictions.logits[:, index], predictions.boxes[:, index], each)
            for index, each in enumerate(objects)
        ]
        if usable is not None:
            costs = [
                cost.masked_fill(~row.view(1, -1, 1), _FORBIDDEN)
                for cost, row in zip(costs, usable, strict=True)
            ]
        device = costs[0].device
        # One copy for all layers and images.
        flat = torch.cat([cost.flatten() for cost in costs]).cpu()
        parts = flat.split([cost.numel() for cost in costs])
        queries: list[list[int]] = [[] for _ in range(layers)]
        matched: list[list[int]] = [[] for _ in range(layers)]
        first_object = 0
        for image, (part, each) in enumerate(zip(parts, objects, strict=True)):
            for layer, cost in enumerate(part.view(layers, count, -1).numpy()):
                rows, columns = linear_sum_assignment(cost)
                queries[layer].extend(rows + image * count)
                matched[layer].extend(columns + first_object)
            first_object += len(each.classes)
        both = torch.tensor([queries, matched], dtype=torch.int64, device=device)
        return both[0], both[1]

    def _costs(self, logits: Tensor, boxes: Tensor, objects: Objects) -> Tensor:
        """[layers, Q, C] and [layers, Q, 4] of an image with G objects -> [layers, Q, G]."""
        probabilities = logits[..., objects.classes].to(boxes.dtype).sigmoid()
        as_positive = -(probabilities + _MIN_PROBABILITY).log() * (1 - probabilities) ** _GAMMA
        as_negative = -(1 - probabilities + _MIN_PROBABILITY).log() * probabilities**_GAMMA
        focal = _ALPHA * as_positive - (1 - _ALPHA) * as_negative
        flat = boxes.flatten(0, 1)
        l1 = torch.cdist(flat, objects.boxes.to(flat.dtype), p=1).view_as(focal)
        giou = generalized_box_iou(
            box_convert(flat, "cxcywh", "xyxy"), box_convert(objects.boxes, "cxcywh", "xyxy")
        ).view_as(focal)
        cost = self.class_cost * focal + self.l1_cost * l1 - self.giou_cost * giou
        return cost.nan_to_num(_FORBIDDEN, _FORBIDDEN, -_FORBIDDEN)
