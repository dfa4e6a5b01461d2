"""aLRP Loss: Oksuz et al., "A Ranking-based, Balanced Loss Function Unifying Classification and
Localisation in Object Detection", NeurIPS 2020."""

import torch
from torch import Tensor

from .objective import Objective, Tables, Terms
from .relations import own_relation, relation

_MIN_FALSE_POSITIVES = 1e-5
"""aLRP shares out a positive's whole error, however few false positives caused it, so its gradient
jumps where NFP reaches 0. As in the public aLRP code, an NFP of at most this counts as none; it
keeps rounding in a single relation from deciding whether there is a gradient."""


class LocalisationRecallPrecision(Objective):
    """Classification part NFP_i / rank_i, and localisation part: with r_k the box losses, the sum
    of r_k over the positives k that stand no lower than i, over rank_i; means over the positives i.

    As in the public code, the sum of the localisation part takes the step H_0, while its rank and
    the box losses in the gradient of the classification part are smoothed by delta. Positives of
    equal logits all stand above each other; there, the public code takes them in any order.
    """

    name, label = "alrp", "aLRP"
    outputs = ("loss_rank", "loss_loc")
    default_delta = 1.0
    algorithms = ("loop", "exact")
    needs_box_losses = True

    def loop(self, positives: Tensor, negatives: Tensor, values: Tensor) -> tuple[Terms, Tensor]:
        error = torch.zeros_like(positives)
        localisation = torch.zeros_like(positives)
        positive_grad = torch.zeros_like(positives)
        negative_grad = torch.zeros_like(negatives)
        box_grad = torch.zeros_like(positives)
        for i in range(positives.numel()):
            others = relation(positives - positives[i], self.delta)
            others[i] = 0
            above = relation(negatives - positives[i], self.delta)
            false_positives = above.sum()
            rank = 1 + others.sum() + false_positives
            error[i] = false_positives / rank
            if false_positives > _MIN_FALSE_POSITIVES:
                update = ((others * values).sum() + false_positives) / rank
                positive_grad[i] = -update
                negative_grad += above * (update / false_positives)
            no_lower = relation(positives - positives[i], 0)
            localisation[i] = (no_lower * values).sum() / rank
            box_grad += no_lower / rank
        count = positives.numel()
        losses = error.mean(), localisation.mean()
        return Terms(losses, (positive_grad / count,), box_grad / count), negative_grad / count

    def tabulate(self, tables: Tables, values: Tensor) -> tuple[Terms, Tensor]:
        rest = 1 - own_relation(self.delta)
        rank_positive = tables.positives_above() + rest
        box_sum = tables.positives_above(values) + rest * values
        false_positives = tables.negatives_above()
        rank = rank_positive + false_positives
        spreads = false_positives > _MIN_FALSE_POSITIVES
        update = torch.where(spreads, (box_sum - values + false_positives) / rank, 0)
        share = torch.where(spreads, update / false_positives, 0)

        order = tables.positives.argsort()
        ascending, count = tables.positives[order], rank.numel()
        first = torch.searchsorted(ascending, ascending)  # of those with the same logit
        last = torch.searchsorted(ascending, ascending, right=True) - 1
        from_end = values[order].flip(0).cumsum(0).flip(0)
        localisation = from_end[first] / rank[order]
        box_grad = torch.empty_like(rank)
        box_grad[order] = (1 / rank[order]).cumsum(0)[last] / count
        losses = (false_positives / rank).mean(), localisation.mean()
        return Terms(losses, (-update / count,), box_grad), share
