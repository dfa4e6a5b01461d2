"""The definitions, as the loops compute them, against numbers worked out by hand."""

import pytest
import torch

from bucketed_ranking.losses.alrp import LocalisationRecallPrecision
from bucketed_ranking.losses.ap import AveragePrecision
from bucketed_ranking.losses.relations import relation
from bucketed_ranking.losses.rs import RankSort

PRECISE = {"rtol": 1e-14, "atol": 1e-15}


def _values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_relation_is_linear_between_minus_and_plus_delta() -> None:
    differences = _values(-2, -1, -0.5, 0, 0.5, 1, 2)
    expected = _values(0, 0, 0.25, 0.5, 0.75, 1, 1)
    torch.testing.assert_close(relation(differences, 1.0), expected, **PRECISE)


def test_relation_at_delta_zero_counts_a_tie_as_above() -> None:
    assert relation(_values(-1e-9, 0, 1e-9), 0).tolist() == [0, 1, 1]


def test_ap_with_a_step() -> None:
    # Order 3(+) 2(-) 1(+) 0(-): the second positive has one false positive above, rank 3.
    terms, negative_grad = AveragePrecision(0, False).loop(
        _values(3, 1), _values(2, 0), _values(1, 1)
    )
    torch.testing.assert_close(terms.losses[0], _values(1 / 6)[0], **PRECISE)
    torch.testing.assert_close(terms.positive_grads[0], _values(0, -1 / 6), **PRECISE)
    torch.testing.assert_close(negative_grad, _values(1 / 6, 0), **PRECISE)


def test_ap_with_a_linear_relation() -> None:
    # Positive 0.5: rank+ 1 + 0.25, NFP 0.25 + 1, error 1/2. Positive 0: rank+ 1 + 0.75, NFP
    # 0.5 + 1, error 1.5 / 3.25 = 6/13.
    terms, negative_grad = AveragePrecision(1, False).loop(
        _values(0.5, 0), _values(0, 2, -3), _values(1, 1)
    )
    torch.testing.assert_close(terms.losses[0], _values(25 / 52)[0], **PRECISE)
    torch.testing.assert_close(terms.positive_grads[0], _values(-1 / 4, -3 / 13), **PRECISE)
    expected = _values(0.05 + 1 / 13, 0.2 + 2 / 13, 0)
    torch.testing.assert_close(negative_grad, expected, **PRECISE)


def test_interpolated_ap_takes_the_best_precision_from_below() -> None:
    # As above: precision 7/13 at logit 0 beats 1/2 at logit 0.5, whose error becomes 6/13 and whose
    # share of each negative is scaled by (6/13) / (1/2).
    terms, negative_grad = AveragePrecision(1, True).loop(
        _values(0.5, 0), _values(0, 2, -3), _values(1, 1)
    )
    torch.testing.assert_close(terms.losses[0], _values(6 / 13)[0], **PRECISE)
    torch.testing.assert_close(terms.positive_grads[0], _values(-3 / 13, -3 / 13), **PRECISE)
    torch.testing.assert_close(negative_grad, _values(1.6 / 13, 4.4 / 13, 0), **PRECISE)


def test_alrp() -> None:
    # As above, with box losses 0.2 and 0.6. Positive 0.5 has 0.25 x 0.6 above it, so its update is
    # (0.15 + 1.25) / 2.5 = 0.56; positive 0 has 0.75 x 0.2, (0.15 + 1.5) / 3.25 = 33/65. For the
    # localisation part only the first stands above the second: 0.2 / 2.5 and (0.6 + 0.2) / 3.25.
    terms, negative_grad = LocalisationRecallPrecision(1).loop(
        _values(0.5, 0), _values(0, 2, -3), _values(0.2, 0.6)
    )
    torch.testing.assert_close(terms.losses[0], _values(25 / 52)[0], **PRECISE)
    torch.testing.assert_close(terms.positive_grads[0], _values(-0.28, -33 / 130), **PRECISE)
    expected = _values((0.112 + 11 / 65) / 2, (0.448 + 22 / 65) / 2, 0)
    torch.testing.assert_close(negative_grad, expected, **PRECISE)
    torch.testing.assert_close(terms.losses[1], _values((0.08 + 16 / 65) / 2)[0], **PRECISE)
    torch.testing.assert_close(terms.box_grad, _values(0.2 + 2 / 13, 2 / 13), **PRECISE)


def test_alrp_positives_of_one_logit_stand_above_each_other() -> None:
    # Each has rank 1 + 1/2.
    terms, _ = LocalisationRecallPrecision(1).loop(_values(2, 2), _values(), _values(0.2, 1.6))
    torch.testing.assert_close(terms.losses[1], _values(1.8 / 1.5)[0], **PRECISE)
    torch.testing.assert_close(terms.box_grad, _values(1 / 1.5, 1 / 1.5), **PRECISE)


def test_alrp_spreads_nothing_without_false_positives() -> None:
    terms, negative_grad = LocalisationRecallPrecision(1).loop(
        _values(3, 2), _values(-3), _values(0.5, 0.5)
    )
    assert terms.losses[0] == 0
    assert not terms.positive_grads[0].any()
    assert not negative_grad.any()
    # Ranks 1 + H(-1) = 1 and 1 + H(1) = 2.
    torch.testing.assert_close(terms.losses[1], _values((0.5 + (0.5 + 0.5) / 2) / 2)[0])


def test_rank_sort() -> None:
    # Positive 0 (quality 0.75): rank+ 0.5 + 0.75, NFP 0.75, error 3/8. Positive 0.25 (0.5): rank+
    # 0.25 + 0.5, NFP 0.5, error 2/5. Sorting: the first has current error (0.5 x 0.25 + 0.75 x 0.5)
    # / 1.25 = 0.4 and target 0.25, caused by the second alone; the second has none.
    terms, negative_grad = RankSort(0.5).loop(_values(0, 0.25), _values(0.25), _values(0.75, 0.5))
    torch.testing.assert_close(terms.losses[0], _values(0.3875)[0], **PRECISE)
    torch.testing.assert_close(terms.positive_grads[0], _values(-0.1875, -0.2), **PRECISE)
    torch.testing.assert_close(negative_grad, _values(0.3875), **PRECISE)
    torch.testing.assert_close(terms.losses[1], _values(0.075)[0], **PRECISE)
    torch.testing.assert_close(terms.positive_grads[1], _values(-0.075, 0.075), **PRECISE)


def test_rank_sort_with_a_step_counts_ties_as_above() -> None:
    # All logits are equal. Each positive: rank+ 2, NFP 3, ranking error 3/5. Sorting: the better
    # one has current error 0.25 and target 0; the worse one has none.
    terms, negative_grad = RankSort(0).loop(_values(1, 1), _values(1, 1, 1), _values(1, 0.5))
    torch.testing.assert_close(terms.losses[0], _values(0.6)[0], **PRECISE)
    torch.testing.assert_close(negative_grad, _values(0.2, 0.2, 0.2), **PRECISE)
    torch.testing.assert_close(terms.losses[1], _values(0.125)[0], **PRECISE)
    torch.testing.assert_close(terms.positive_grads[1], _values(-0.125, 0.125), **PRECISE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_definitions_keep_the_type_of_the_logits(dtype: torch.dtype) -> None:
    positives, negatives = _values(0, 1).to(dtype), _values(0.5).to(dtype)
    terms, negative_grad = RankSort(0.5).loop(positives, negatives, positives / 2 + 0.5)
    assert {each.dtype for each in (*terms.losses, *terms.positive_grads, negative_grad)} == {dtype}
