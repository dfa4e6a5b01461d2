"""What kinds of errors a detector makes, and what each costs (TIDE: Bolya et al., ECCV 2020).

A detection that counts as wrong at IoU 0.5 is one of these, its overlap being the largest with any
object of its own class, or of another:

| kind | overlap |
|---|---|
| location | with its own class 0.1 to 0.5 |
| class | with another class 0.5 or more |
| duplicate | with its own class 0.5 or more, but a better one has found that object |
| both | with another class 0.1 to 0.5 |
| background | less than 0.1 with anything |

The first that fits counts, in this order, which is that of the authors' code. An object is *missed*
where nothing has found it and no error of location or class is about it. A kind's cost is what AP50
gains if these errors alone are mended.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .matches import Picture, average_precision, count_objects, curves_of

KINDS = ("class", "location", "both", "duplicate", "background", "missed")
RIGHT = "right"
_FOREGROUND, _BACKGROUND = 0.5, 0.1


class Cost(NamedTuple):
    """Of one kind of error: how many there are, and what AP50 gains without them, in percent.

    The gain is NaN where AP50 is not defined without them.
    """

    count: int
    gain: float


def kinds_of(picture: Picture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort the detections of a picture by kind of error.

    Returns:
        The kind, or RIGHT, of each detection [N]; the object [N] that an error of class or location
        is about; and which objects are missed [G].
    """
    nothing = np.zeros((len(picture.scores), 1))  # an object that overlaps with none
    same = np.equal(picture.found_classes[:, None], picture.classes)
    own, other = (np.hstack([picture.iou * which, nothing]) for which in (same, ~same))
    most_own, most_other = own.max(axis=1), other.max(axis=1)
    kinds = np.select(
        [
            picture.match >= 0,
            (most_own >= _BACKGROUND) & (most_own < _FOREGROUND),
            most_other >= _FOREGROUND,
            most_own >= _FOREGROUND,
            most_other >= _BACKGROUND,
        ],
        [RIGHT, "location", "class", "duplicate", "both"],
        "background",
    )
    about = np.where(kinds == "class", other.argmax(axis=1), own.argmax(axis=1))
    about[~np.isin(kinds, ("class", "location"))] = -1
    return kinds, about, picture.missed & ~np.isin(np.arange(len(picture.boxes)), about)


def cost_of_errors(pictures: Sequence[Picture], num_classes: int) -> dict[str, Cost]:
    """Compute AP50 with each kind of error mended, all others left.

    Of the errors of class or location about an object that is not found, the one with the best
    score is made right; the others, and those of all other kinds, are left out. Missed objects are
    left out too: a class of which none remains takes no part in the mean.
    """
    objects = count_objects(pictures, num_classes)
    classes, scores, kinds, about, object_classes = [], [], [], [], []
    missed, first = np.zeros(num_classes, dtype=int), 0
    for picture in pictures:
        kinds_here, about_here, missed_here = kinds_of(picture)
        missed += np.bincount(picture.classes[missed_here], minlength=num_classes)
        # Numbers of the objects in all pictures; -1 for those that are found already.
        mendable = (about_here >= 0) & np.append(picture.missed, False)[about_here]
        about.append(np.where(mendable, about_here + first, -1))
        first += len(picture.classes)
        object_classes.append(picture.classes)
        classes.append(picture.found_classes)
        scores.append(picture.scores)
        kinds.append(kinds_here)
    if not pictures:
        return {kind: Cost(0, math.nan) for kind in KINDS}
    classes, scores, kinds, about, object_classes = map(
        np.concatenate, (classes, scores, kinds, about, object_classes)
    )
    right = kinds == RIGHT
    before = mean_ap(classes, scores, right, objects)
    costs = {}
    for kind in KINDS:
        these, mended = kinds == kind, np.zeros(len(scores), dtype=bool)
        candidates = np.flatnonzero(these & (about >= 0))
        candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
        mended[candidates[np.unique(about[candidates], return_index=True)[1]]] = True
        kept, classes_now = ~these | mended, classes.copy()
        classes_now[mended] = object_classes[about[mended]]
        left = objects - missed if kind == "missed" else objects
        after = mean_ap(classes_now[kept], scores[kept], (right | mended)[kept], left)
        count = missed.sum() if kind == "missed" else these.sum()
        # Below 0 where a class leaves the mean: that is no gain. (NaN stays NaN.)
        costs[kind] = Cost(int(count), float(np.maximum(after - before, 0)))
    return costs


def mean_ap(
    classes: np.ndarray, scores: np.ndarray, right: np.ndarray, num_objects: np.ndarray
) -> float:
    """AP50 in percent of detections [N], over the classes [C] that have objects; NaN: none has."""
    curves = curves_of(classes, scores, right, num_objects)
    pairs = zip(curves, num_objects, strict=True)
    found = [average_precision(curve, count) for curve, count in pairs if count]
    return float(np.mean(found)) if found else math.nan


def confusion_matrix(pictures: Sequence[Picture], num_classes: int, threshold: float) -> np.ndarray:
    """Count which class was found for which, by the detections of this score or more.

    What is right counts as in COCO's measure. Other detections take, best score first, the object
    that they overlap most with, 0.5 or more, of those that nothing has found.

    Returns:
        [C + 1, C + 1]: rows are the objects' classes, columns the detections'; the last of each is
        the background: detections that take no object, and objects that are missed.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=int)
    for picture in (picture.kept(threshold) for picture in pictures):
        free, wrong = picture.missed, picture.match < 0
        np.add.at(matrix, (picture.found_classes[~wrong],) * 2, 1)
        for overlaps, found in zip(picture.iou[wrong], picture.found_classes[wrong], strict=True):
            usable = np.where(free & (overlaps >= _FOREGROUND), overlaps, 0)
            if usable.any():
                taken = usable.argmax()
                matrix[picture.classes[taken], found] += 1
                free[taken] = False
            else:
                matrix[-1, found] += 1
        np.add.at(matrix[:, -1], picture.classes[free], 1)
    return matrix
