"""The balance of aLRP over epochs."""

import pytest
import torch

from bucketed_ranking.balance import EpochBalance
from bucketed_ranking.criterion import RankingResult


def result(classification: float, localisation: float) -> RankingResult:
    loss = torch.tensor(localisation, requires_grad=True)
    return RankingResult(
        {"loss_rank": torch.tensor(classification), "loss_box_reg": loss},
        torch.tensor(classification),
        torch.ones(1),
        torch.ones(1),
        {"box_error": loss.detach()},
    )


def factors(balance: EpochBalance, steps: list[tuple[float, float]]) -> list[float]:
    found = []
    for step in steps:
        given = result(*step)
        losses = balance(given).losses
        assert losses["loss_rank"] == given.losses["loss_rank"]
        losses["loss_box_reg"].backward()
        found.append(given.losses["loss_box_reg"].grad.item())
    return found


STEPS = [(0.9, 0.1), (0.7, 0.3), (0.8, 0.2), (0.6, 0.1), (0.4, 0.3), (0.2, 0.2), (0.1, 0.1)]
# Means over epochs of three steps; the step that ends an epoch has the new factor.
EXPECTED = [50, 50, 1 + 2.4 / 0.6, 5, 5, 1 + 1.2 / 0.6, 3]


def test_factor_is_that_of_the_last_epochs_means():
    assert factors(EpochBalance(3), STEPS) == pytest.approx(EXPECTED)


@pytest.mark.parametrize("stopped_after", range(len(STEPS)))
def test_a_resumed_run_keeps_the_averages(stopped_after):
    first, resumed = EpochBalance(3), EpochBalance(3)
    before = factors(first, STEPS[:stopped_after])
    resumed.load_state_dict(first.state_dict())
    assert before + factors(resumed, STEPS[stopped_after:]) == pytest.approx(EXPECTED)


def test_steps_without_positives_count_and_weigh_nothing():
    assert factors(EpochBalance(2), [(0.9, 0.1), (0.0, 0.0)]) == pytest.approx([50, 10])
    assert factors(EpochBalance(1), [(0.0, 0.0), (0.9, 0.1)]) == pytest.approx([50, 10])


def test_reset_starts_with_the_first_epoch():
    balance = EpochBalance(3)
    factors(balance, STEPS)
    balance.reset()
    assert factors(balance, STEPS) == pytest.approx(EXPECTED)
