"""The published buckets: equal to the definition at delta 0, close to it elsewhere."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bucketed_ranking.losses.ap import AveragePrecision
from bucketed_ranking.losses.bucketed import Buckets

KINDS = ("normal", "trained", "quarters", "constant", "large", "tiny", "shifted")


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    positives=st.integers(0, 25),
    negatives=st.integers(0, 60),
    kind=st.sampled_from(KINDS),
    quality=st.sampled_from(["uniform", "tied"]),
    loss=st.sampled_from([("ap", {}), ("ap", {"interpolated": True}), ("rs", {})]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_theorem_bucketed_equals_loop_at_delta_zero(
    make_case: Callable,
    evaluate: Callable,
    relative_error: Callable,
    positives: int,
    negatives: int,
    kind: str,
    quality: str,
    loss: tuple[str, dict],
    dtype: torch.dtype,
    seed: int,
) -> None:
    objective, options = loss
    case = make_case(positives, negatives, kind, quality, seed, ignored=3, dtype=dtype)
    bucketed = evaluate(case, objective, "bucketed", delta=0, **options)
    loop = evaluate(case.to(torch.float64), objective, "loop", delta=0, **options)
    tolerance = 1e-14 if dtype == torch.float64 else 2e-6
    assert relative_error(bucketed.grad, loop.grad) <= tolerance
    assert relative_error(bucketed.losses, loop.losses) <= tolerance


@pytest.mark.parametrize("objective", ["ap", "rs"])
def test_theorem_holds_where_a_mean_would_round_past_a_positive(
    evaluate: Callable, make_case: Callable, relative_error: Callable, objective: str
) -> None:
    # Ten times 0.1 sums to less than 1: the mean of this bucket rounds below the tied positive.
    case = make_case(0, 0)
    case.logits = torch.tensor([0.1] * 11, dtype=torch.float64)
    case.targets = torch.tensor([1.0] + [0.0] * 10, dtype=torch.float64)
    loop = evaluate(case, objective, "loop", delta=0)
    assert loop.losses[0] == 10 / 11
    assert relative_error(evaluate(case, objective, "bucketed", delta=0).grad, loop.grad) < 1e-15


@pytest.mark.parametrize("delta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("objective", ["ap", "rs"])
def test_deviation_at_other_deltas_is_reported_and_small(
    make_case: Callable,
    evaluate: Callable,
    relative_error: Callable,
    record_property: Callable,
    objective: str,
    delta: float,
) -> None:
    case = make_case(300, 20_000, seed=1)
    loop = evaluate(case, objective, "loop", delta=delta)
    bucketed = evaluate(case, objective, "bucketed", delta=delta)
    deviation = relative_error(bucketed.grad, loop.grad)
    record_property("gradient_deviation", deviation)
    print(f"{objective}, delta {delta}: the gradient of the buckets deviates by {deviation:.1e}")
    # The buckets are an approximation here; exactly equal would mean that this compares nothing.
    assert 1e-6 < deviation < 0.03
    assert abs(bucketed.losses - loop.losses).max() < 1e-3


def test_sorting_part_is_not_bucketed(
    make_case: Callable, evaluate: Callable, relative_error: Callable
) -> None:
    case = make_case(40, 200)
    loop, bucketed = (evaluate(case, "rs", name, delta=0.5) for name in ("loop", "bucketed"))
    torch.testing.assert_close(loop.losses[1], bucketed.losses[1], rtol=1e-13, atol=0)


def test_members_of_a_bucket_act_through_their_mean() -> None:
    """Two positives far apart and two negatives between: the bucket stands at their mean."""
    positives = torch.tensor([4.0, 0.0], dtype=torch.float64)
    negatives = torch.tensor([1.0, 0.5], dtype=torch.float64)
    buckets = Buckets(positives, 1.0)
    buckets.add(negatives)
    terms, negative_grad = buckets.rank(AveragePrecision(1.0), torch.ones(2))
    # Mean 0.75 is H = 0.875 above the lower positive: NFP 1.75 of rank 2 + 1.75, and above none.
    torch.testing.assert_close(terms.losses[0].item(), 1.75 / 3.75 / 2)
    torch.testing.assert_close(negative_grad.tolist(), [0.875 / 3.75 / 2] * 2)
    torch.testing.assert_close(terms.positive_grads[0].tolist(), [0.0, -1.75 / 3.75 / 2])
