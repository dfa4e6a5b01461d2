"""Dominance sums: both routes against every pair, one at a time."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bucketed_ranking.losses import dominance
from bucketed_ranking.losses.relations import relation

DELTAS = (0, 0.1, 0.5, 1, 2)


def _points(count: int, steps: int | None, spread: float, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, dtype=torch.float64, generator=generator)
    keys = torch.rand(count, dtype=torch.float64, generator=generator)
    if steps is not None:
        scores, keys = (scores * steps).round() / steps, (keys * steps).ceil() / steps
    return scores * spread, keys, torch.rand(2, count, dtype=torch.float64, generator=generator)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 70),
    steps=st.sampled_from([None, 4, 10]),
    spread=st.sampled_from([0.0, 1e-4, 1.0, 1e4]),
    delta=st.sampled_from(DELTAS),
    seed=st.integers(0, 2**32 - 1),
)
def test_both_routes_equal_the_sum_over_every_pair(
    count: int, steps: int | None, spread: float, delta: float, seed: int
) -> None:
    scores, keys, weights = _points(count, steps, spread, seed)
    total = torch.stack([(relation(scores - score, delta) * weights).sum(1) for score in scores], 1)
    below = torch.stack(
        [
            (relation(scores - score, delta) * (keys < key) * weights).sum(1)
            for score, key in zip(scores, keys, strict=True)
        ],
        1,
    )
    for route in (dominance.compare_pairs, dominance.walk_tree):
        sums = route(scores, keys, weights, delta)
        torch.testing.assert_close(sums[0], below, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(sums[1], total - below, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("block_bits", [0, 3])
@pytest.mark.parametrize("route", [dominance.compare_pairs, dominance.walk_tree])
def test_the_six_points_of_the_docstring(
    route: Callable, block_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dominance, "_BLOCK_BITS", block_bits)
    scores = torch.arange(6, dtype=torch.float64)
    keys = torch.tensor([3.0, 0, 4, 1, 5, 2])
    a, b, c, d, e, f = weights = torch.tensor([1.0, 10, 100, 1e3, 1e4, 1e5], dtype=torch.float64)
    below, others = route(scores, keys, weights[None], 2)
    assert below[0, 2] == b / 4 + 3 * d / 4 + f
    assert others[0, 2] == c / 2 + e
    # The mirrored points: what point c receives is the sum over the points of greater keys, e.
    received, _ = route(-scores, -keys, weights[None], 2)
    assert received[0, 2] == 0 * e
    assert received[0, 3] == a * 1 + c * 3 / 4 + e / 4 + f * 0


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("spread", [1.0, 1e4])
def test_routes_agree_on_many_points(delta: float, spread: float) -> None:
    points = _points(3000, None, spread, 0)
    for found, expected in zip(
        dominance.walk_tree(*points, delta), dominance.compare_pairs(*points, delta), strict=True
    ):
        # The tree takes the others from totals of about a thousand.
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


def test_number_of_points_decides_the_route(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("compare_pairs", "walk_tree"):
        monkeypatch.setattr(dominance, name, lambda *_, name=name: taken.append(name))
    for count in (dominance.CROSSOVER, dominance.CROSSOVER + 1):
        dominance.dominance_sums(*_points(count, None, 1.0, 0), 0.5)
    assert taken == ["compare_pairs", "walk_tree"]


def test_pairs_are_compared_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    points = _points(50, None, 1.0, 0)
    expected = dominance.compare_pairs(*points, 0.5)
    monkeypatch.setattr(dominance, "_PAIRS_AT_ONCE", 120)
    for found, reference in zip(dominance.compare_pairs(*points, 0.5), expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-15, atol=1e-15)


def test_rounding_that_lets_a_stretch_reach_a_third_cell() -> None:
    # Far from the lowest score, s - delta rounds into one cell and s + delta into the next but one.
    below, centre, above = 0.43197574615524037, 0.5319757461552403, 0.6319757461542403
    scores = torch.tensor([-9853.968024253845, below, centre, above, 0.83], dtype=torch.float64)
    points = (scores, torch.rand(5).double(), torch.rand(2, 5).double())
    for found, expected in zip(
        dominance.walk_tree(*points, 0.1), dominance.compare_pairs(*points, 0.1), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
