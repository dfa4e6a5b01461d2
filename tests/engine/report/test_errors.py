"""Kinds of errors, what they cost, and the confusion matrix, on cases worked by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from bucketed_ranking.engine.report.errors import (
    KINDS,
    RIGHT,
    Cost,
    confusion_matrix,
    cost_of_errors,
    kinds_of,
)
from bucketed_ranking.engine.report.matches import Picture

NOWHERE = (80, 80, 5, 5)


def picture(objects, detections) -> Picture:
    """Of objects (x, y, width, height, class) and detections (..., class, score, its object)."""
    there = np.array(objects, dtype=float).reshape(-1, 5)
    found = np.array(detections, dtype=float).reshape(-1, 7)
    classes, scores, match = found[:, 4].astype(int), found[:, 5], found[:, 6].astype(int)
    assert (np.diff(scores) <= 0).all()
    truth = there[:, :4], there[:, 4].astype(int)
    return Picture(1, Path("1.jpg"), *truth, found[:, :4], classes, scores, match)


def costs(objects, detections, num_classes=1) -> dict[str, Cost]:
    """Of the kinds that occur."""
    found = cost_of_errors([picture(objects, detections)], num_classes)
    assert tuple(found) == KINDS
    return {kind: cost for kind, cost in found.items() if cost.count}


EACH_ONCE = picture(
    [(0, 0, 10, 10, 0), (20, 0, 10, 10, 0), (40, 0, 10, 10, 1), (60, 0, 10, 10, 0)],
    [
        (0, 0, 10, 10, 0, 0.9, 0),
        (0, 0, 10, 9, 0, 0.8, -1),    # IoU 0.9 with an object that has been found
        (20, 0, 10, 4, 0, 0.7, -1),   # IoU 0.4
        (40, 0, 10, 10, 0, 0.6, -1),  # the other class
        (40, 0, 10, 3, 0, 0.5, -1),   # IoU 0.3 with the other class
        (*NOWHERE, 0, 0.4, -1),
    ],
)  # fmt: skip


def test_every_kind_once():
    kinds, about, missed = kinds_of(EACH_ONCE)
    assert kinds.tolist() == [RIGHT, "duplicate", "location", "class", "both", "background"]
    assert about.tolist() == [-1, -1, 1, 2, -1, -1]
    assert missed.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("height", "class_index", "kind"),
    [
        (1.0, 0, "location"),    # IoU 0.1, the bound itself
        (0.99, 0, "background"),
        (4.99, 0, "location"),
        (5.0, 1, "class"),
        (4.99, 1, "both"),
        (1.0, 1, "both"),
        (0.99, 1, "background"),
    ],
)  # fmt: skip
def test_bounds_of_the_overlap(height, class_index, kind):
    one = picture([(0, 0, 10, 10, 0)], [(0, 0, 10, height, class_index, 0.9, -1)])
    assert kinds_of(one)[0].tolist() == [kind]


def test_a_badly_placed_box_of_its_class_comes_before_the_other_class():
    both = picture(
        [(0, 0, 10, 10, 0), (0, 6, 10, 10, 1)], [(0, 6, 10, 10, 0, 0.9, -1)]
    )  # IoU 0.25 with its own class, 1 with the other
    assert kinds_of(both)[0].tolist() == ["location"]


@pytest.mark.parametrize(("where", "kind"), [(NOWHERE, "background"), ((0, 0, 10, 3), "both")])
def test_background_and_both_are_left_out(where, kind):
    """Of one of two classes the precision 1/2 becomes 1; nothing is found of the other."""
    found = costs(
        [(0, 0, 10, 10, 0), (30, 30, 10, 10, 1)],
        [(*where, 1, 0.9, -1), (30, 30, 10, 10, 1, 0.8, 1)],
        2,
    )
    # Without the object that is missed, its class takes no part in the mean.
    assert found == {kind: (1, pytest.approx(25)), "missed": (1, pytest.approx(25))}


def test_duplicates_are_left_out():
    """At recall 1 the precision 2/3 becomes 1: that of 50 of the 101 levels."""
    found = costs(
        [(0, 0, 10, 10, 0), (30, 30, 10, 10, 0)],
        [(0, 0, 10, 10, 0, 0.9, 0), (0, 0, 10, 9, 0, 0.8, -1), (30, 30, 10, 10, 0, 0.7, 1)],
    )
    assert found == {"duplicate": (1, pytest.approx(100 * 50 / 101 / 3))}


def test_a_missed_object_is_no_longer_looked_for():
    """Recall 1/2 becomes 1: 50 levels more of the 101."""
    found = costs([(0, 0, 10, 10, 0), (30, 30, 10, 10, 0)], [(0, 0, 10, 10, 0, 0.9, 0)])
    assert found == {"missed": (1, pytest.approx(100 * 50 / 101))}


def test_the_best_box_beside_an_object_is_moved_and_the_others_left_out():
    found = costs([(0, 0, 10, 10, 0)], [(0, 0, 10, 2, 0, 0.9, -1), (0, 0, 10, 4, 0, 0.8, -1)])
    assert found == {"location": (2, pytest.approx(100))}


def test_boxes_beside_an_object_that_is_found_are_left_out():
    found = costs([(0, 0, 10, 10, 0)], [(0, 0, 10, 4, 0, 0.9, -1), (0, 0, 10, 10, 0, 0.8, 0)])
    assert found == {"location": (1, pytest.approx(50))}


def test_a_wrong_class_becomes_the_right_one():
    """Precision of class 0 rises from 1/2 to 1, AP of class 1 from 0 to 100."""
    found = costs(
        [(0, 0, 10, 10, 0), (30, 30, 10, 10, 1)],
        [(30, 30, 10, 10, 0, 0.9, -1), (0, 0, 10, 10, 0, 0.8, 0)],
        2,
    )
    assert found == {"class": (1, pytest.approx(75))}


def test_nothing_found_and_nothing_there():
    nothing_found = cost_of_errors([picture([(0, 0, 10, 10, 0)], [])], 1)
    assert nothing_found["missed"].count == 1
    assert math.isnan(nothing_found["missed"].gain), "there is nothing left to measure AP on"
    assert nothing_found["class"] == (0, 0)
    nothing_there = cost_of_errors([picture([], [(*NOWHERE, 0, 0.9, -1)])], 1)
    assert nothing_there["background"].count == 1
    assert all(math.isnan(cost.gain) for cost in nothing_there.values())
    assert cost_of_errors([], 1)["missed"].count == 0


def test_a_confusion_matrix_has_a_row_and_a_column_for_the_background():
    matrix = confusion_matrix([EACH_ONCE], 2, 0.0)
    assert matrix.tolist() == [
        [1, 0, 2],  # one is found, one has a bad box alone, one nothing at all
        [1, 0, 0],  # taken for class 0
        [4, 0, 0],  # duplicate, bad box, the second one at the other class, nowhere
    ]


def test_a_confusion_matrix_counts_from_the_threshold_on():
    matrix = confusion_matrix([EACH_ONCE], 2, 0.7)
    assert matrix.tolist() == [[1, 0, 2], [0, 0, 1], [2, 0, 0]]
    assert confusion_matrix([EACH_ONCE], 2, math.inf).tolist() == [[0, 0, 3], [0, 0, 1], [0, 0, 0]]


def test_an_object_is_confused_with_the_best_of_the_wrong_ones():
    one = picture([(0, 0, 10, 10, 0)], [(0, 0, 10, 9, 2, 0.9, -1), (0, 0, 10, 10, 1, 0.8, -1)])
    matrix = confusion_matrix([one], 3, 0.0)
    assert matrix[0].tolist() == [0, 0, 1, 0]
    assert matrix[-1].tolist() == [0, 1, 0, 0]
