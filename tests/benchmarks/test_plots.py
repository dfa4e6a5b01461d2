"""The picture: that it is drawn, whatever the cases."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bucketed_ranking.benchmarks.plots import draw_profile
from tests.benchmarks import given


def drawn(path: Path, *cases: dict) -> np.ndarray:
    draw_profile(cases or [given.case()], "A machine", path)
    return np.asarray(Image.open(path).convert("RGB"))


def colours_of(picture: np.ndarray) -> set[int]:
    return set(np.unique(picture.astype(int) @ [0x10000, 0x100, 1]).tolist())


GRID = [
    given.case(regime, p, n, scale=p * n / 1e5)
    for regime in ("start", "trained")
    for p in (100, 1000)
    for n in (1000, 10_000)
]


@pytest.mark.parametrize(
    "cases",
    [
        GRID,
        [c for c in GRID if c["positives"] == 100],
        [c for c in GRID if c["grid_negatives"] == 1000 and c["regime"] == "start"],
        GRID[:1],
        [given.case(None), given.case(None, 7)],
    ],
    ids=["both vary", "negatives vary", "positives vary", "one case", "captured"],
)
def test_losses_show_in_their_colours(tmp_path, cases):
    picture = drawn(tmp_path / "p.png", *cases)
    assert min(picture.shape[:2]) > 300
    colours = colours_of(picture)
    assert 0xD55E00 in colours  # RS
    assert 0x0072B2 in colours  # AP
    assert 0xCC79A7 in colours  # sort


def test_a_grid_of_which_nothing_was_measured_is_drawn_empty(tmp_path):
    skipped = [given.timing("rs", skipped="too slow")]
    cases = [given.case(negatives=n, timings=skipped) for n in (10, 20)]
    assert drawn(tmp_path / "p.png", *cases).size
