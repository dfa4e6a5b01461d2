"""The search among borders: the table gives what a plain binary search gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bucketed_ranking.losses import search


@pytest.fixture(autouse=True, scope="module")
def small_table() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_CELLS", 64)
        yield


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    borders=st.integers(1, 100),
    spread=st.sampled_from([0.0, 1e-40, 1e-4, 1.0, 1e4, 3e38]),
    shift=st.sampled_from([0.0, 1e4]),
    steps=st.sampled_from([None, 4]),
    inclusive=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_table_equals_binary_search(
    borders: int,
    spread: float,
    shift: float,
    steps: int | None,
    inclusive: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ascending = torch.rand(borders, dtype=dtype, generator=generator).sort().values
    values = torch.rand(200, dtype=dtype, generator=generator)
    values = torch.cat([values, ascending])
    if steps is not None:
        ascending, values = (ascending * steps).round(), (values * steps).round()
    ascending, values = ascending * spread + shift, values * spread + shift
    top = torch.nextafter(ascending[-1], ascending.new_tensor(torch.inf))
    values = torch.cat([values.clamp(max=top), ascending])
    expected = torch.searchsorted(ascending, values, right=inclusive)
    found = search.count_below(ascending, values, inclusive)
    assert torch.equal(found, expected.int())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_gets_a_place_within_the_table(dtype: torch.dtype) -> None:
    values = torch.full((100,), torch.nan, dtype=dtype)
    counts = search.count_below(torch.tensor([0.0, 1.0], dtype=dtype), values, False)
    assert ((counts >= 0) & (counts <= 2)).all()
