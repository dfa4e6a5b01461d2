"""Timing training steps without a data set."""

import json

import pytest
from rich.console import Console

from bucketed_ranking.errors import BucketRankError
from bucketed_ranking.tables import job
from bucketed_ranking.tables.timing import TimingRequest, parse_size
from tests.small_detectors import NARROW


def request(output, **changes):
    given = {
        "detectors": ("faster_rcnn_tiny",), "losses": ("score", "brs"), "batch_size": 2,
        "image_size": (64, 96), "steps": 2, "options": tuple(NARROW), "device": "cpu",
    }  # fmt: skip
    return TimingRequest(output, **{**given, **changes})


def test_every_loss_is_timed_once(tmp_path, capsys):
    job.run_timing(request(tmp_path), Console(width=150))
    assert "faster_rcnn_tiny-brs: " in capsys.readouterr().out
    rows = {row["loss"]: row for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert set(rows) == {"score", "brs"}
    for row in rows.values():
        assert 0 < row["classification_loss_share"]["mean"] < 1
        assert row["images_per_second"]["mean"] == pytest.approx(
            2 / row["seconds_per_iteration"]["mean"]
        )
    text = (tmp_path / "table.md").read_text()
    assert "random weights, 2 made-up pictures of 96 x 64" in text
    assert "## Box AP" not in text

    before = (tmp_path / "cells" / "faster_rcnn_tiny-brs.json").read_text()
    job.run_timing(request(tmp_path, losses=("brs", "rs-exact")), Console(width=150))
    assert (tmp_path / "cells" / "faster_rcnn_tiny-brs.json").read_text() == before
    assert "rs-exact" in (tmp_path / "table.md").read_text()
    with pytest.raises(BucketRankError, match="under other conditions"):
        job.run_timing(request(tmp_path, image_size=(64, 64)), Console())


@pytest.mark.parametrize("text", ["800", "800x", "0x5", "axb"])
def test_sizes_that_are_none(text):
    with pytest.raises(BucketRankError, match="HEIGHTxWIDTH"):
        parse_size(text)


def test_sizes():
    assert parse_size("800x1333") == (800, 1333)
