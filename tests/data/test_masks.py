"""Masks of every kind: what is valid passes whole, what is not costs neither memory nor time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bucketed_ranking.data.coco import check_dataset, clean_dataset
from bucketed_ranking.data.entries import DatasetEntry
from bucketed_ranking.data.masks import valid_mask

SIZE = [30, 40]
SQUARE = [2, 3, 12, 3, 12, 15, 2, 15]


def compressed(mask: np.ndarray) -> str:
    tool = pytest.importorskip("pycocotools.mask")
    return tool.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


@pytest.mark.parametrize("seed", range(20))
def test_masks_that_pycocotools_wrote_pass(seed: int) -> None:
    rng = np.random.default_rng(seed)
    density = rng.choice([0.003, 0.1, 0.9])
    mask = rng.random(SIZE) < density
    mask[rng.integers(30), rng.integers(40)] = True
    text = {"counts": compressed(mask), "size": SIZE}
    assert valid_mask(text, SIZE) == text
    edges = np.flatnonzero(np.diff(np.r_[0, mask.ravel(order="F"), 0]))
    runs = np.diff(np.r_[0, edges, mask.size]).tolist()
    plain = {"counts": runs[: len(runs) - (runs[-1] == 0)], "size": SIZE}
    assert valid_mask(plain, SIZE) == plain


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ([100, 50, 1049], "too few"),
        ([100, 50, 1051], "too many"),
        ([-100, 250, 1050], "negative"),
        ([100.5, 49.5, 1050], "fractions"),
        ([1200], "no pixel"),
        ([float("nan"), 1200], "not a number"),
        ([None, 1200], "null"),
        ([], "empty"),
        ("", "empty text"),
        ("hello world", "no run lengths"),
        ("o" * 100_000, "a number without an end"),
        ("\u00e9\u00e9\u00e9", "other characters"),
        (7, "a number"),
    ],
)
def test_run_lengths_that_do_not_fill_the_picture_are_invalid(counts: Any, why: str) -> None:
    assert valid_mask({"counts": counts, "size": SIZE}, SIZE) is None, why


@pytest.mark.parametrize("size", [None, [], [30], [40, 30], [30, 40, 1], "30x40", [30, "x"]])
def test_run_lengths_of_another_size_are_invalid(size: Any) -> None:
    assert valid_mask({"counts": [0, 1200], "size": size}, SIZE) is None


def test_whole_numbers_written_with_a_point_are_mended() -> None:
    given = {"counts": [100.0, 50, 1050], "size": [30.0, 40.0]}
    assert valid_mask(given, SIZE) == {"counts": [100, 50, 1050], "size": SIZE}


@pytest.mark.parametrize(
    ("polygon", "why"),
    [
        ([50, 3, 60, 3, 60, 15], "right of the picture"),
        ([2, -9, 12, -9, 12, -1], "above"),
        ([2, 3, 1e9, 3, 12, 15], "far outside"),
        ([2, 3, 1e308, 3, 12, -1e308], "at the edge of floats"),
        ([2, 3, 10**400, 3, 12, 15], "beyond floats"),
        (["2", "3", "12", "3", "12", "15"], "texts"),
        ([2, 3, float("inf"), 3, 12, 15], "infinite"),
        ([2, 3, [12], 3, 12, 15], "nested"),
        ([True, 3, 12, 3, 12, 15], "a truth value"),
    ],
)
def test_polygons_outside_or_of_other_things_than_numbers_are_left_out(
    polygon: list[Any], why: str
) -> None:
    assert valid_mask([polygon], SIZE) is None, why
    assert valid_mask([polygon, SQUARE], SIZE) == [SQUARE]


def test_polygons_that_reach_a_little_outside_are_kept() -> None:
    polygon = [-3, -3, 45, -3, 45, 33]
    assert valid_mask([polygon], SIZE) == [polygon]


def test_the_check_counts_them(home: Path, write_coco: Callable[..., tuple[Path, Path]]) -> None:
    def edit(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["segmentation"] = [SQUARE]
        content["annotations"][0]["segmentation"] = {"counts": "hello", "size": SIZE}
        content["annotations"][1]["segmentation"] = {"counts": [-1, 1201], "size": SIZE}
        content["annotations"][2]["segmentation"] = [["2", "3", "12", "3", "12", "15"]]
        content["annotations"][3]["segmentation"] = [[50, 3, 60, 3, 60, 15]]

    entry = DatasetEntry("toy", *write_coco(edit))
    assert {f.kind: f.count for f in check_dataset(entry).findings} == {"invalid mask": 4}
    info = clean_dataset(entry)
    assert (info.num_annotations, info.has_masks) == (16, True)
