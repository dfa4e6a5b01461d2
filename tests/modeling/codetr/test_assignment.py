"""Which query gets which object."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from bucketed_ranking.modeling.codetr.assignment import (
    HungarianAssigner,
    Objects,
    normalised_boxes,
    objects_of,
)
from bucketed_ranking.modeling.codetr.query_head import Predictions

NUM_CLASSES = 3
LEFT, RIGHT, SMALL = [0.25, 0.5, 0.4, 0.4], [0.75, 0.5, 0.4, 0.4], [0.5, 0.5, 0.1, 0.1]


def objects(boxes, classes):
    return Objects(torch.tensor(boxes).view(-1, 4), torch.tensor(classes, dtype=torch.int64))


def predictions(boxes, logits=None):
    """One layer and image."""
    boxes = torch.tensor(boxes).view(1, 1, -1, 4)
    if logits is None:
        logits = torch.zeros(*boxes.shape[:3], NUM_CLASSES)
    return Predictions(torch.as_tensor(logits).view(*boxes.shape[:3], NUM_CLASSES), boxes)


def test_boxes_are_relative_to_the_image():
    instances = Instances((100, 200), gt_boxes=Boxes([[20.0, 10.0, 60.0, 90.0]]))
    instances.gt_classes = torch.tensor([2])
    (found,) = objects_of([instances])
    torch.testing.assert_close(found.boxes, torch.tensor([[0.2, 0.5, 0.2, 0.8]]))
    assert found.classes.tolist() == [2]
    assert normalised_boxes(torch.zeros(0, 4), (10, 10)).shape == (0, 4)


def test_objects_go_to_the_queries_close_to_them():
    assigner = HungarianAssigner(2.0, 5.0, 2.0)
    found = assigner(predictions([SMALL, RIGHT, LEFT]), [objects([LEFT, RIGHT], [0, 2])])
    assert found.labels.tolist() == [[NUM_CLASSES, 2, 0]]
    assert found.positives.tolist() == [[1, 2]]
    torch.testing.assert_close(found.boxes, torch.tensor([[RIGHT, LEFT]]))


def test_the_total_counts_and_not_the_first_come():
    """Query 0 is best for both objects, but query 1 is hopeless for the first of them."""
    assigner = HungarianAssigner(0.0, 1.0, 0.0)
    given = predictions([[0.5, 0.5, 0.2, 0.2], [0.9, 0.5, 0.2, 0.2]])
    # L1 costs: object 0: 0.1 and 0.5; object 1: 0.0 and 0.4 -> 0.5 either way; then 0.1 less.
    near = objects([[0.4, 0.5, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2]], [0, 1])
    assert assigner(given, [near]).labels.tolist() == [[0, 1]]


def test_costs_by_hand():
    """IoU with the object 1/3, hull 0.3 x 0.2; L1 0.1; the class' probability 1/4."""
    assigner = HungarianAssigner(2.0, 5.0, 3.0)
    logit = math.log(1 / 3)
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]])
    logits = torch.tensor([[[9.0, logit, 9.0]]])
    cost = assigner._costs(logits, boxes, objects([[0.6, 0.5, 0.2, 0.2]], [1]))
    positive, negative = 0.25 * 0.75**2 * math.log(4), 0.75 * 0.25**2 * math.log(4 / 3)
    expected = 2 * (positive - negative) + 5 * 0.1 - 3 * (1 / 3)
    assert cost.item() == pytest.approx(expected, abs=1e-5)


def test_the_class_decides_between_equal_boxes():
    logits = [[0.0, 0.0, 0.0], [0.0, 3.0, 0.0]]
    found = HungarianAssigner(2.0, 5.0, 2.0)(
        predictions([LEFT, LEFT], logits), [objects([LEFT], [1])]
    )
    assert found.labels.tolist() == [[NUM_CLASSES, 1]]


def test_layers_and_images_are_as_each_alone():
    torch.manual_seed(0)
    given = Predictions(torch.randn(3, 2, 6, NUM_CLASSES), torch.rand(3, 2, 6, 4) * 0.4 + 0.1)
    both = [
        objects(torch.rand(2, 4).tolist(), [0, 2]),
        objects(torch.rand(3, 4).tolist(), [1, 1, 0]),
    ]
    assigner = HungarianAssigner(2.0, 5.0, 2.0)
    found = assigner(given, both)
    assert found.positives.shape == (3, 5)
    for layer in range(3):
        for image in range(2):
            part = Predictions(*(each[layer, image].view(1, 1, 6, -1) for each in given))
            alone = assigner(part, [both[image]])
            rows = slice(6 * image, 6 * image + 6)
            assert torch.equal(found.labels[layer, rows], alone.labels[0])
            own = [0, 1] if image == 0 else [2, 3, 4]
            assert torch.equal(found.positives[layer, own] - 6 * image, alone.positives[0])
            assert torch.equal(found.boxes[layer, own], alone.boxes[0])


def test_an_image_without_objects_and_one_with_more_than_queries():
    torch.manual_seed(0)
    given = Predictions(torch.randn(1, 2, 3, NUM_CLASSES), torch.rand(1, 2, 3, 4))
    many = objects(torch.rand(5, 4).tolist(), [0, 1, 2, 0, 1])
    found = HungarianAssigner(2.0, 5.0, 2.0)(given, [objects([], []), many])
    assert found.labels[0, :3].tolist() == [NUM_CLASSES] * 3
    assert (found.labels[0, 3:] < NUM_CLASSES).all()
    assert found.positives.tolist() == [[3, 4, 5]]


def test_unusable_queries_get_nothing_and_are_ignored():
    usable = torch.tensor([[False, True]])
    found = HungarianAssigner(2.0, 5.0, 2.0)(
        predictions([LEFT, RIGHT]), [objects([LEFT], [0])], usable
    )
    assert found.labels.tolist() == [[-1, 0]]


def test_predictions_that_are_not_finite_do_not_stop_it():
    """They show in the losses; one process that stopped here would leave others waiting."""
    boxes = torch.tensor([LEFT, RIGHT])
    boxes[0, 0] = math.nan
    found = HungarianAssigner(2.0, 5.0, 2.0)(
        predictions(boxes.tolist()), [objects([LEFT, RIGHT], [0, 1])]
    )
    assert sorted(found.labels[0].tolist()) == [0, 1]
