"""AP Loss: Chen et al., CVPR 2019 and TPAMI 2020. BAP: Yavuz et al., ECCV 2024."""

import torch
from torch import Tensor

from .objective import Objective, Tables, Terms
from .relations import own_relation, relation


class AveragePrecision(Objective):
    """The mean over the positives of NFP_i / rank_i, the share of negatives ranked above.

    ``interpolated``: a positive's error is the least among those that score no higher: 1 - the
    interpolated precision of the original AP Loss.
    """

    name, label = "ap", "AP"
    outputs = ("loss_rank",)
    default_delta = 1.0
    can_interpolate = True

    def loop(self, positives: Tensor, negatives: Tensor, values: Tensor) -> tuple[Terms, Tensor]:
        error = torch.zeros_like(positives)
        negative_grad = torch.zeros_like(negatives)
        least_error = positives.new_ones(())
        for i in positives.argsort():
            others = relation(positives - positives[i], self.delta)
            others[i] = 0
            above = relation(negatives - positives[i], self.delta)
            false_positives = above.sum()
            rank = 1 + others.sum() + false_positives
            error[i] = false_positives / rank
            share = 1 / rank
            if self.interpolated:
                if error[i] > least_error:
                    share = share * least_error / error[i]
                least_error = error[i] = torch.minimum(error[i], least_error)
            negative_grad += above * share
        count = positives.numel()
        return Terms((error.mean(),), (-error / count,)), negative_grad / count

    def tabulate(self, tables: Tables, values: Tensor) -> tuple[Terms, Tensor]:
        rank_positive = tables.positives_above() + (1 - own_relation(self.delta))
        false_positives = tables.negatives_above()
        rank = rank_positive + false_positives
        error, share = false_positives / rank, 1 / rank
        if self.interpolated:
            order = tables.positives.argsort()
            least = torch.empty_like(error).scatter_(0, order, error[order].cummin(0).values)
            error, share = least, torch.where(least < error, least / false_positives, share)
        return Terms((error.mean(),), (-error / error.numel(),)), share
