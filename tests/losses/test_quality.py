"""Losses that train scores towards qualities, against numbers worked by hand."""

import math

import pytest
import torch

from bucketed_ranking.losses import QUALITY_LOSSES, QualityLoss

LN2, LN4 = math.log(2), math.log(4)
# Logits of the probabilities 1/2 (twice) and 3/4; the first is a positive of quality 1/4.
LOGITS = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], dtype=torch.float64)
# -log(1 - p): log 2 for 1/2, log 4 for 3/4. Cross-entropy of the positive: log 2 for any target.
EXPECTED = {
    "qfl": (1 / 2 - 1 / 4) ** 2 * LN2 + 2 * LN2 / 4 + LN4 * 9 / 16,
    "vfl": LN2 / 4 + 0.75 * (2 * LN2 / 4 + LN4 * 9 / 16),
    "mal": LN2 + 2 * LN2 * 0.5**1.5 + LN4 * 0.75**1.5,
}


@pytest.mark.parametrize("name", QUALITY_LOSSES)
def test_values_by_hand(name):
    loss = QualityLoss(name)
    given = LOGITS, torch.tensor([0]), torch.tensor([0.25], dtype=torch.float64)
    assert loss.forward_indexed(*given)["loss_cls"].item() == pytest.approx(EXPECTED[name])
    # Two positives halve it; a row that is ignored takes no part.
    again = torch.cat([LOGITS, LOGITS])
    two = torch.tensor([0, 4]), torch.tensor([0.25, 0.25], dtype=torch.float64)
    assert loss.forward_indexed(again, *two)["loss_cls"].item() == pytest.approx(EXPECTED[name])
    more = torch.cat([LOGITS, torch.full((1, 2), 9.0)])
    ignored = torch.tensor([False, False, True])
    found = loss.forward_indexed(more, *given[1:], ignored_rows=ignored)["loss_cls"]
    assert found.item() == pytest.approx(EXPECTED[name])


@pytest.mark.parametrize("name", QUALITY_LOSSES)
def test_gradients_pull_a_positive_to_its_quality_and_negatives_down(name):
    logits = torch.tensor([[2.0, -1.0], [-3.0, 0.5]], requires_grad=True)
    positives, qualities = torch.tensor([0, 2]), torch.tensor([0.3, 0.9])
    QualityLoss(name).forward_indexed(logits, positives, qualities)["loss_cls"].backward()
    signs = logits.grad.sign().tolist()
    assert signs == [[1, 1], [-1, 1]]  # above its quality, negative; below its quality, negative


@pytest.mark.parametrize("name", QUALITY_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_few_positives_large_logits_and_half_precision(name, dtype):
    logits = torch.tensor([[80.0, -80.0], [0.0, 1.0]], dtype=dtype, requires_grad=True)
    none = torch.tensor([], dtype=torch.int64), torch.tensor([])
    loss = QualityLoss(name).forward_indexed(logits, *none)["loss_cls"]
    assert loss.dtype == torch.float32
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_an_unknown_name_is_told():
    with pytest.raises(ValueError, match="unknown loss 'varifocal'; choose one of qfl, vfl, mal"):
        QualityLoss("varifocal")
