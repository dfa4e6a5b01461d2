"""What is timed does what it says."""

from dataclasses import replace

import pytest
import torch

from bucketed_ranking.benchmarks.loss_calls import (
    ALL_LOSSES,
    LossCalls,
    loop_of,
)
from bucketed_ranking.losses import LOSS_NAMES


@pytest.mark.parametrize("loss", ALL_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_loss_runs_and_leaves_nothing_behind(case, loss, dtype):
    rows = torch.zeros(len(case.logits), dtype=torch.bool)
    rows[::7] = True
    case = replace(case, logits=case.logits.to(dtype), ignored_rows=rows)
    before = case.logits.clone()
    LossCalls(case).build(loss)()
    assert case.logits.grad is None
    assert not case.logits.requires_grad
    assert torch.equal(case.logits, before)


def test_each_loss_is_compared_with_the_loop_of_its_objective():
    assert {loss: loop_of(loss) for loss in ("brs", "rs-exact", "bap", "alrp-exact", "rs")} == {
        "brs": "rs", "rs-exact": "rs", "bap": "ap", "alrp-exact": "alrp", "rs": "rs",
    }  # fmt: skip
    assert loop_of("focal") is None
    assert all(loop_of(loss) in LOSS_NAMES for loss in LOSS_NAMES)
