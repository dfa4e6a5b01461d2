"""The definitions against numbers worked out by hand."""

import pytest
import torch

from bucketed_ranking.losses import definition
from bucketed_ranking.losses.relations import relation

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
    term = definition.average_precision(_values(3, 1), _values(2, 0), 0, False)
    torch.testing.assert_close(term.loss, _values(1 / 6)[0], **PRECISE)
    torch.testing.assert_close(term.positive_grad, _values(0, -1 / 6), **PRECISE)
    torch.testing.assert_close(term.negative_grad, _values(1 / 6, 0), **PRECISE)


def test_ap_with_a_linear_relation() -> None:
    # Positive 0.5: rank+ 1 + 0.25, NFP 0.25 + 1, error 1/2. Positive 0: rank+ 1 + 0.75, NFP
    # 0.5 + 1, error 1.5 / 3.25 = 6/13.
    term = definition.average_precision(_values(0.5, 0), _values(0, 2, -3), 1, False)
    torch.testing.assert_close(term.loss, _values(25 / 52)[0], **PRECISE)
    torch.testing.assert_close(term.positive_grad, _values(-1 / 4, -3 / 13), **PRECISE)
    expected = _values(0.05 + 1 / 13, 0.2 + 2 / 13, 0)
    torch.testing.assert_close(term.negative_grad, expected, **PRECISE)


def test_interpolated_ap_takes_the_best_precision_from_below() -> None:
    # As above: precision 7/13 at logit 0 beats 1/2 at logit 0.5, whose error becomes 6/13 and whose
    # share of each negative is scaled by (6/13) / (1/2).
    term = definition.average_precision(_values(0.5, 0), _values(0, 2, -3), 1, True)
    torch.testing.assert_close(term.loss, _values(6 / 13)[0], **PRECISE)
    torch.testing.assert_close(term.positive_grad, _values(-3 / 13, -3 / 13), **PRECISE)
    torch.testing.assert_close(term.negative_grad, _values(1.6 / 13, 4.4 / 13, 0), **PRECISE)


def test_alrp() -> None:
    # As above, with box losses 0.2 and 0.6. Positive 0.5 has 0.25 x 0.6 above it, so its update is
    # (0.15 + 1.25) / 2.5 = 0.56; positive 0 has 0.75 x 0.2, (0.15 + 1.5) / 3.25 = 33/65.
    classification, localisation = definition.localisation_recall_precision(
        _values(0.5, 0), _values(0.2, 0.6), _values(0, 2, -3), 1
    )
    torch.testing.assert_close(classification.loss, _values(25 / 52)[0], **PRECISE)
    torch.testing.assert_close(classification.positive_grad, _values(-0.28, -33 / 130), **PRECISE)
    expected = _values((0.112 + 11 / 65) / 2, (0.448 + 22 / 65) / 2, 0)
    torch.testing.assert_close(classification.negative_grad, expected, **PRECISE)
    torch.testing.assert_close(localisation.loss, _values((0.14 + 3 / 13) / 2)[0], **PRECISE)
    expected = _values(0.2 + 3 / 26, 0.05 + 2 / 13)
    torch.testing.assert_close(localisation.box_grad, expected, **PRECISE)


def test_alrp_spreads_nothing_without_false_positives() -> None:
    classification, localisation = definition.localisation_recall_precision(
        _values(3, 2), _values(0.5, 0.5), _values(-3), 1
    )
    assert classification.loss == 0
    assert not classification.positive_grad.any()
    assert not classification.negative_grad.any()
    # Ranks 1 + H(-1) = 1 and 1 + H(1) = 2.
    torch.testing.assert_close(localisation.loss, _values((0.5 + (0.5 + 0.5) / 2) / 2)[0])


def test_rank_sort() -> None:
    # Positive 0 (quality 0.75): rank+ 0.5 + 0.75, NFP 0.75, error 3/8. Positive 0.25 (0.5): rank+
    # 0.25 + 0.5, NFP 0.5, error 2/5. Sorting: the first has current error (0.5 x 0.25 + 0.75 x 0.5)
    # / 1.25 = 0.4 and target 0.25, caused by the second alone; the second has none.
    ranking, sorting = definition.rank_sort(
        _values(0, 0.25), _values(0.75, 0.5), _values(0.25), 0.5
    )
    torch.testing.assert_close(ranking.loss, _values(0.3875)[0], **PRECISE)
    torch.testing.assert_close(ranking.positive_grad, _values(-0.1875, -0.2), **PRECISE)
    torch.testing.assert_close(ranking.negative_grad, _values(0.3875), **PRECISE)
    torch.testing.assert_close(sorting.loss, _values(0.075)[0], **PRECISE)
    torch.testing.assert_close(sorting.positive_grad, _values(-0.075, 0.075), **PRECISE)
    assert sorting.negative_grad is None


def test_rank_sort_with_a_step_counts_ties_as_above() -> None:
    # All logits are equal. Each positive: rank+ 2, NFP 3, ranking error 3/5. Sorting: the better
    # one has current error 0.25 and target 0; the worse one has none.
    ranking, sorting = definition.rank_sort(_values(1, 1), _values(1, 0.5), _values(1, 1, 1), 0)
    torch.testing.assert_close(ranking.loss, _values(0.6)[0], **PRECISE)
    torch.testing.assert_close(ranking.negative_grad, _values(0.2, 0.2, 0.2), **PRECISE)
    torch.testing.assert_close(sorting.loss, _values(0.125)[0], **PRECISE)
    torch.testing.assert_close(sorting.positive_grad, _values(-0.125, 0.125), **PRECISE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_definitions_keep_the_type_of_the_logits(dtype: torch.dtype) -> None:
    positives, negatives = _values(0, 1).to(dtype), _values(0.5).to(dtype)
    ranking, sorting = definition.rank_sort(positives, positives / 2 + 0.5, negatives, 0.5)
    assert {term.dtype for term in (*ranking, *sorting[:2])} == {dtype}
