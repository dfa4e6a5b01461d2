"""The cases that losses are timed on, and the passes that are timed."""

from dataclasses import replace

import pytest
import torch

from bucketed_ranking.benchmarks.loss_cases import (
    ALL_LOSSES,
    Case,
    GridPoint,
    LossCalls,
    loop_of,
    make_case,
    make_grid,
)
from bucketed_ranking.losses import LOSS_NAMES


def made(regime: str = "start", positives: int = 50, negatives: int = 20_000, seed: int = 0):
    point = GridPoint(regime, positives, negatives)
    return make_case(point, dtype=torch.float32, device="cpu", seed=seed)


@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (100, 100), (50, 20_000), (79, 1)])
def test_a_case_has_the_sizes_asked_for(positives, negatives):
    case = made(positives=positives, negatives=negatives)
    assert case.num_positives == positives
    assert negatives <= case.num_negatives < negatives + 80
    assert case.logits.shape[1] == 80
    assert case.positives.unique().numel() == positives
    assert 0 <= case.positives.min() <= case.positives.max() < case.logits.numel()
    assert ((case.qualities > 0) & (case.qualities <= 1)).all()


def test_regimes_differ_in_how_many_negatives_are_relevant():
    start, trained = made("start"), made("trained")
    assert start.relevant_negatives() > 0.9 * start.num_negatives
    assert trained.relevant_negatives() < 0.3 * trained.num_negatives


def test_the_relevant_negatives_are_those_that_the_losses_use():
    logits = torch.tensor([[0.0, -2.0], [-0.9, -1.1], [3.0, -0.5]])
    box = torch.zeros(1)
    case = Case("", logits, torch.tensor([0]), torch.ones(1), box)
    assert case.relevant_negatives(delta=1.0) == 3
    assert case.relevant_negatives(delta=0.6) == 2
    ignored = replace(case, ignored_rows=torch.tensor([False, False, True]))
    assert ignored.relevant_negatives(delta=1.0) == 1
    assert ignored.num_negatives == 3


def test_a_seed_makes_the_same_case_again():
    assert torch.equal(made(seed=3).logits, made(seed=3).logits)
    assert not torch.equal(made(seed=3).logits, made(seed=4).logits)


def test_dense_targets_mark_the_positives():
    case = made()
    assert torch.equal(
        case.dense_targets().view(-1).nonzero().squeeze(1), case.positives.sort().values
    )


@pytest.mark.parametrize("count", [1, 4, 49, 50])
def test_thinning_keeps_what_is_relevant(count):
    case = made("trained")
    thinned = case.thinned(count)
    assert thinned.num_positives == thinned.positives.unique().numel() == count
    every = case.relevant_negatives() + case.num_positives
    assert thinned.relevant_negatives() + count == every


def test_the_grid_has_every_combination():
    grid = make_grid("both", [1, 2], [3])
    assert [(p.regime, p.positives, p.negatives) for p in grid] == [
        ("start", 1, 3), ("start", 2, 3), ("trained", 1, 3), ("trained", 2, 3),
    ]  # fmt: skip


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
