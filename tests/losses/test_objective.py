"""What it takes to add an objective: one class."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bucketed_ranking.losses import LOSS_NAMES, RankingLoss, api
from bucketed_ranking.losses.objective import Objective, Tables, Terms
from bucketed_ranking.losses.relations import relation


class ReciprocalRank(Objective):
    """1 - 1 / (1 + NFP_i): as if each positive were the only one."""

    name, label = "rr", "RR"
    outputs = ("loss_rank",)
    default_delta = 0.5

    def loop(self, positives: Tensor, negatives: Tensor, values: Tensor) -> tuple[Terms, Tensor]:
        error, negative_grad = torch.zeros_like(positives), torch.zeros_like(negatives)
        for i in range(positives.numel()):
            above = relation(negatives - positives[i], self.delta)
            error[i] = above.sum() / (1 + above.sum())
            negative_grad += above / (1 + above.sum())
        count = positives.numel()
        return Terms((error.mean(),), (-error / count,)), negative_grad / count

    def tabulate(self, tables: Tables, values: Tensor) -> tuple[Terms, Tensor]:
        false_positives = tables.negatives_above()
        error = false_positives / (1 + false_positives)
        terms = Terms((error.mean(),), (-error / error.numel(),))
        return terms, 1 / (1 + false_positives)


@pytest.mark.parametrize(("name", "delta"), [("brr", 0.0), ("rr-exact", 0.5), ("rr-exact", 0.0)])
def test_a_new_objective_is_there_in_every_algorithm(
    make_case: Callable, monkeypatch: pytest.MonkeyPatch, name: str, delta: float
) -> None:
    monkeypatch.setitem(api.OBJECTIVES, "rr", ReciprocalRank)
    for each, algorithm in (("rr", "loop"), ("brr", "bucketed"), ("rr-exact", "exact")):
        monkeypatch.setitem(LOSS_NAMES, each, ("rr", algorithm))
    case = make_case(50, 400)
    found = []
    for each in ("rr", name):
        logits = case.logits.clone().requires_grad_()
        loss = RankingLoss(each, delta=delta)(logits, case.targets)["loss_rank"]
        loss.backward()
        found.append((loss.detach(), logits.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)
