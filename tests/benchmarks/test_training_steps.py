"""Timing training steps without a data set."""

import json
from unittest import mock

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from rich.console import Console

from bucketed_ranking.benchmarks import table
from bucketed_ranking.benchmarks.training_steps import time_detectors
from bucketed_ranking.errors import BucketRankError
from tests.small_detectors import NARROW


def run(output, **changes):
    given = {
        "detectors": ("faster_rcnn_tiny",), "losses": ("score", "brs"), "batch_size": 2,
        "image_size": (64, 96), "steps": 2, "options": tuple(NARROW), "device": "cpu",
    }  # fmt: skip
    console = Console(width=150)
    time_detectors(output, console, **{**given, **changes})
    table.report(output, console)


def test_every_loss_is_timed_once(tmp_path, capsys):
    run(tmp_path)
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
    run(tmp_path, losses=("brs", "rs-exact"))
    assert (tmp_path / "cells" / "faster_rcnn_tiny-brs.json").read_text() == before
    assert "rs-exact" in (tmp_path / "table.md").read_text()
    with pytest.raises(BucketRankError, match="under other conditions"):
        run(tmp_path, image_size=(64, 64))


def test_mixed_precision_is_what_is_timed(tmp_path):
    with mock.patch.object(torch, "autocast", wraps=torch.autocast) as autocast:
        run(tmp_path, losses=("brs",), options=(*NARROW, "SOLVER.AMP.ENABLED", "True"))
    modes = [call.kwargs.get("enabled") for call in autocast.call_args_list if call.args[1:]]
    assert modes
    assert all(modes)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_is_timed_on_a_gpu(tmp_path):
    run(tmp_path, options=(*NARROW, "SOLVER.AMP.ENABLED", "True"), device="cuda")
    text = (tmp_path / "table.md").read_text()
    assert "mixed precision" in text
    for row in json.loads((tmp_path / "table.json").read_text())["rows"]:
        assert 0 < row["classification_loss_share"]["mean"] < 1
        assert row["peak_memory_bytes"]["mean"] > 0
