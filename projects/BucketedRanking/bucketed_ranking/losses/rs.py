"""RS Loss: Oksuz et al., "Rank & Sort Loss for Object Detection and Instance Segmentation", ICCV
2021, eq. 7 and 8. BRS: Yavuz et al., ECCV 2024."""

import torch
from torch import Tensor

from .objective import Objective, Tables, Terms
from .relations import relation


class RankSort(Objective):
    """Ranking part NFP_i / rank_i; sorting part: how much the mean deficit in quality (1 - quality)
    of the positives above i exceeds that of those among them that are no worse than i."""

    name, label = "rs", "RS"
    outputs = ("loss_rank", "loss_sort")
    default_delta = 0.5

    def loop(self, positives: Tensor, negatives: Tensor, values: Tensor) -> tuple[Terms, Tensor]:
        ranking_error = torch.zeros_like(positives)
        sorting_error = torch.zeros_like(positives)
        negative_grad = torch.zeros_like(negatives)
        sorting_grad = torch.zeros_like(positives)
        for i in range(positives.numel()):
            others = relation(positives - positives[i], self.delta)
            above = relation(negatives - positives[i], self.delta)
            rank_positive, false_positives = others.sum(), above.sum()
            rank = rank_positive + false_positives
            ranking_error[i] = false_positives / rank
            negative_grad += above / rank

            rightly_above = others * (values >= values[i])
            wrongly_above = others * (values < values[i])
            current = (others * (1 - values)).sum() / rank_positive
            target = (rightly_above * (1 - values)).sum() / rightly_above.sum()
            misplaced = wrongly_above.sum()
            if misplaced > 0:
                sorting_error[i] = current - target
                sorting_grad[i] -= sorting_error[i]
                sorting_grad += wrongly_above * (sorting_error[i] / misplaced)
        count = positives.numel()
        losses = ranking_error.mean(), sorting_error.mean()
        grads = -ranking_error / count, sorting_grad / count
        return Terms(losses, grads), negative_grad / count

    def tabulate(self, tables: Tables, values: Tensor) -> tuple[Terms, Tensor]:
        """With ``misplaced`` the sum of the relations of the positives wrongly above i, i's sorting
        error is misplaced x share, where share = (their mean deficit - the mean deficit of those
        rightly above) / rank+: a form in which nothing cancels."""
        weights = torch.stack([torch.ones_like(values), 1 - values])
        wrongly_above, rightly_above = tables.positives_above_by_quality(values, weights)
        (misplaced, wrong_deficit), (placed, right_deficit) = wrongly_above, rightly_above
        rank_positive, false_positives = misplaced + placed, tables.negatives_above()
        rank = rank_positive + false_positives
        ranking_error = false_positives / rank

        excess = (wrong_deficit / misplaced).clamp(0, 1) - right_deficit / placed
        share = torch.where(misplaced > 0, excess / rank_positive, 0)
        sorting_error = misplaced * share
        received = tables.spread_to_worse(values, share)
        count = values.numel()
        losses = ranking_error.mean(), sorting_error.mean()
        return Terms(losses, (-ranking_error / count, (received - sorting_error) / count)), 1 / rank
