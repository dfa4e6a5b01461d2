"""The ranking losses as their papers define them, one positive at a time.

Slow and obvious on purpose: every other algorithm is tested against this one, and it is the
unbucketed baseline ("loop") that the others are timed against. Each function takes the positives'
logits [P], P >= 1, and the negatives' logits [N], in float32 or float64, and computes in that type.

AP Loss: Chen et al., CVPR 2019 and TPAMI 2020. aLRP Loss: Oksuz et al., NeurIPS 2020. RS Loss:
Oksuz et al., ICCV 2021.
"""

import torch
from torch import Tensor

from .relations import LocalisationTerm, RankingTerm, relation

ALRP_MIN_FALSE_POSITIVES = 1e-5
"""aLRP shares out a positive's whole error, however few false positives caused it, so its gradient
jumps where NFP reaches 0. As in the public aLRP code, an NFP of at most this counts as none; it
keeps rounding in a single relation from deciding whether there is a gradient."""


def average_precision(
    positives: Tensor, negatives: Tensor, delta: float, interpolated: bool
) -> RankingTerm:
    """AP Loss: the mean over the positives of NFP_i / rank_i (Chen et al., CVPR 2019).

    With ``interpolated``, a positive's error is the least among those that score no higher: 1 - the
    interpolated precision.
    """
    error = torch.zeros_like(positives)
    negative_grad = torch.zeros_like(negatives)
    least_error = positives.new_ones(())
    for i in positives.argsort():
        others = relation(positives - positives[i], delta)
        others[i] = 0
        above = relation(negatives - positives[i], delta)
        false_positives = above.sum()
        rank = 1 + others.sum() + false_positives
        error[i] = false_positives / rank
        share = 1 / rank
        if interpolated:
            if error[i] > least_error:
                share = share * least_error / error[i]
            least_error = error[i] = torch.minimum(error[i], least_error)
        negative_grad += above * share
    count = positives.numel()
    return RankingTerm(error.mean(), -error / count, negative_grad / count)


def localisation_recall_precision(
    positives: Tensor, box_losses: Tensor, negatives: Tensor, delta: float
) -> tuple[RankingTerm, LocalisationTerm]:
    """aLRP Loss: classification and localisation part (Oksuz et al., NeurIPS 2020).

    ``box_losses`` [P] are the positives' box regression losses r_i in [0, 1]. The classification
    part's gradient of a positive counts the box losses of the positives ranked above it.
    """
    error = torch.zeros_like(positives)
    localisation = torch.zeros_like(positives)
    positive_grad = torch.zeros_like(positives)
    negative_grad = torch.zeros_like(negatives)
    box_grad = torch.zeros_like(positives)
    for i in range(positives.numel()):
        others = relation(positives - positives[i], delta)
        others[i] = 0
        above = relation(negatives - positives[i], delta)
        false_positives = above.sum()
        rank = 1 + others.sum() + false_positives
        error[i] = false_positives / rank
        worse_boxes = (others * box_losses).sum()
        if false_positives > ALRP_MIN_FALSE_POSITIVES:
            update = (worse_boxes + false_positives) / rank
            positive_grad[i] = -update
            negative_grad += above * (update / false_positives)
        localisation[i] = (box_losses[i] + worse_boxes) / rank
        others[i] = 1
        box_grad += others / rank
    count = positives.numel()
    return (
        RankingTerm(error.mean(), positive_grad / count, negative_grad / count),
        LocalisationTerm(localisation.mean(), box_grad / count),
    )


def rank_sort(
    positives: Tensor, qualities: Tensor, negatives: Tensor, delta: float
) -> tuple[RankingTerm, RankingTerm]:
    """RS Loss: ranking and sorting part (Oksuz et al., ICCV 2021, eq. 7 and 8).

    ``qualities`` [P] in (0, 1] say in which order the positives should stand.
    """
    ranking_error = torch.zeros_like(positives)
    sorting_error = torch.zeros_like(positives)
    negative_grad = torch.zeros_like(negatives)
    sorting_grad = torch.zeros_like(positives)
    for i in range(positives.numel()):
        others = relation(positives - positives[i], delta)
        above = relation(negatives - positives[i], delta)
        rank_positive, false_positives = others.sum(), above.sum()
        rank = rank_positive + false_positives
        ranking_error[i] = false_positives / rank
        negative_grad += above / rank

        rightly_above = others * (qualities >= qualities[i])
        wrongly_above = others * (qualities < qualities[i])
        current = (others * (1 - qualities)).sum() / rank_positive
        target = (rightly_above * (1 - qualities)).sum() / rightly_above.sum()
        misplaced = wrongly_above.sum()
        if misplaced > 0:
            sorting_error[i] = current - target
            sorting_grad[i] -= sorting_error[i]
            sorting_grad += wrongly_above * (sorting_error[i] / misplaced)
    count = positives.numel()
    return (
        RankingTerm(ranking_error.mean(), -ranking_error / count, negative_grad / count),
        RankingTerm(sorting_error.mean(), sorting_grad / count, None),
    )
