"""The lossless buckets against the definition in float64."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from bucketed_ranking.losses import dominance

LOSSES = {
    "ap": ("ap", {}),
    "interpolated ap": ("ap", {"interpolated": True}),
    "alrp": ("alrp", {}),
    "rs": ("rs", {}),
}
KINDS = (
    "normal", "trained", "solved", "quarters", "tenths", "constant", "large", "tiny", "shifted",
)  # fmt: skip
DELTAS = (0, 0.1, 0.5, 1, 2)
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}


def _assert_equals_definition(
    tools: tuple[Callable, Callable, Callable],
    loss: str,
    delta: float,
    dtype: torch.dtype,
    *what: object,
    **options: object,
) -> None:
    make_case, evaluate, relative_error = tools
    objective, own_options = LOSSES[loss]
    case = make_case(*what, ignored=3, dtype=dtype)
    reference = evaluate(case.to(torch.float64), objective, "loop", delta=delta, **own_options)
    found = evaluate(case, objective, "exact", delta=delta, **own_options, **options)
    tolerance = TOLERANCES[dtype]
    assert found.grad.dtype == found.losses.dtype == dtype
    assert relative_error(found.grad, reference.grad) <= tolerance
    assert relative_error(found.losses, reference.losses) <= tolerance
    if objective == "alrp":
        assert relative_error(found.box_grad, reference.box_grad) <= tolerance


@pytest.fixture(scope="session")
def tools(
    make_case: Callable, evaluate: Callable, relative_error: Callable
) -> tuple[Callable, Callable, Callable]:
    return make_case, evaluate, relative_error


@settings(max_examples=3000, deadline=None, derandomize=True)
@given(
    loss=st.sampled_from(list(LOSSES)),
    delta=st.sampled_from(DELTAS),
    dtype=st.sampled_from(list(TOLERANCES)),
    positives=st.one_of(st.integers(0, 4), st.integers(0, 40)),
    negatives=st.one_of(st.integers(0, 4), st.integers(0, 100)),
    kind=st.sampled_from(KINDS),
    quality=st.sampled_from(["uniform", "tied", "extreme", "ones"]),
    tree=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_definition(
    tools: tuple[Callable, Callable, Callable],
    loss: str,
    delta: float,
    dtype: torch.dtype,
    positives: int,
    negatives: int,
    kind: str,
    quality: str,
    tree: bool,
    seed: int,
) -> None:
    with mock.patch.object(dominance, "CROSSOVER", 0 if tree else dominance.CROSSOVER):
        _assert_equals_definition(
            tools, loss, delta, dtype, positives, negatives, kind, quality, seed
        )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    loss=st.sampled_from(list(LOSSES)),
    delta=st.sampled_from(DELTAS),
    dtype=st.sampled_from(list(TOLERANCES)),
    positives=st.integers(300, 3000),
    negatives=st.integers(0, 3000),
    kind=st.sampled_from(KINDS),
    quality=st.sampled_from(["uniform", "tied"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_definition_for_many_positives(
    tools: tuple[Callable, Callable, Callable],
    loss: str,
    delta: float,
    dtype: torch.dtype,
    positives: int,
    negatives: int,
    kind: str,
    quality: str,
    seed: int,
) -> None:
    _assert_equals_definition(tools, loss, delta, dtype, positives, negatives, kind, quality, seed)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", ["large", "shifted", "quarters"])
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_definition_at_full_size(
    tools: tuple[Callable, Callable, Callable], loss: str, kind: str, dtype: torch.dtype
) -> None:
    _assert_equals_definition(tools, loss, 0.1, dtype, 1000, 3000, kind, "tied", 5)


def test_float32_sums_over_many_negatives_stay_precise(
    make_case: Callable, evaluate: Callable, relative_error: Callable
) -> None:
    # Two positives, so that a few bins hold everything: summed in float32 this would be 1e-4 off.
    case = make_case(2, 500_000, "trained", dtype=torch.float32)
    reference = evaluate(case.to(torch.float64), "rs", "loop", delta=2)
    assert relative_error(evaluate(case, "rs", "exact", delta=2).grad, reference.grad) < 2e-7


@pytest.mark.parametrize("chunk_size", [1, 7, 100, 10_000])
@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_change_nothing(
    tools: tuple[Callable, Callable, Callable], loss: str, chunk_size: int
) -> None:
    _assert_equals_definition(
        tools, loss, 0.5, torch.float32, 20, 120, "normal", "uniform", 3, chunk_size=chunk_size
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_order_of_the_logits_does_not_matter(
    make_case: Callable, evaluate: Callable, relative_error: Callable, loss: str
) -> None:
    objective, options = LOSSES[loss]
    case = make_case(300, 2000, "quarters", ignored=10)
    order = torch.randperm(case.logits.numel(), generator=torch.Generator().manual_seed(1))
    moved = make_case(0, 0)
    moved.logits, moved.targets = case.logits[order], case.targets[order]
    box_of = torch.zeros_like(case.logits)
    box_of[case.is_positive] = case.box_losses
    moved.box_losses = box_of[order][moved.is_positive]
    expected = evaluate(case, objective, "exact", **options)
    found = evaluate(moved, objective, "exact", **options)
    assert relative_error(found.grad, expected.grad[order]) < 1e-14
    assert relative_error(found.losses, expected.losses) < 1e-14


@pytest.mark.parametrize("shift", [-1000.0, 0.125, 4096.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_shift_of_all_logits_does_not_matter(
    make_case: Callable, evaluate: Callable, relative_error: Callable, loss: str, shift: float
) -> None:
    objective, options = LOSSES[loss]
    case = make_case(300, 2000)
    case.logits = (case.logits * 2**20).round() / 2**20  # so that the shift itself is exact
    expected = evaluate(case, objective, "exact", **options)
    case.logits = case.logits + shift
    found = evaluate(case, objective, "exact", **options)
    assert relative_error(found.grad, expected.grad) < 1e-13
    assert relative_error(found.losses, expected.losses) < 1e-13


def test_nothing_has_the_size_of_a_matrix(make_case: Callable, evaluate: Callable) -> None:
    """Every tensor made on the way is linear in P + N, also where P x P or P x N would be large."""

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(
            self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.largest = max(self.largest, tensor.untyped_storage().nbytes())
            return out

    case = make_case(3000, 20_000, dtype=torch.float32)
    for loss, (objective, options) in LOSSES.items():
        with Watch() as watch:
            evaluate(case, objective, "exact", **options)
        assert watch.largest < 64 * 23_000, loss


def test_works_on_every_device(
    make_case: Callable, evaluate: Callable, relative_error: Callable, device: str
) -> None:
    case = make_case(400, 5000, dtype=torch.float32)
    for objective, options in LOSSES.values():
        reference = evaluate(case.to(torch.float64), objective, "loop", **options)
        found = evaluate(case.to(device), objective, "exact", **options)
        assert found.grad.device.type == device
        assert relative_error(found.grad.cpu(), reference.grad) <= 1e-6
