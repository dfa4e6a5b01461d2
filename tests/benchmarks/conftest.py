"""A small case."""

import pytest
import torch

from bucketed_ranking.benchmarks.loss_cases import Case, GridPoint, make_case


@pytest.fixture
def case() -> Case:
    return make_case(GridPoint("start", 30, 2000), dtype=torch.float32, device="cpu", seed=0)
