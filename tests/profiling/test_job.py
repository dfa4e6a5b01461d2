"""The whole job: files, refusals, cases that are too large."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bucketed_ranking.errors import BucketRankError
from bucketed_ranking.profiling import job, memory
from bucketed_ranking.profiling.cases import make_grid
from bucketed_ranking.profiling.timing import TimingOptions

SILENT = Console(file=io.StringIO())


def request(output: Path, **changes) -> job.Request:
    settings = {
        "losses": ["rs-exact", "focal", "sort"],
        "grid": make_grid("both", [5], [200, 400]),
        "timing": TimingOptions(repeats=2, warmup=1),
        "device": "cpu",
        **changes,
    }
    return job.Request(output=output, **settings)


def test_everything_lands_in_the_folder(tmp_path):
    profile = job.profile_losses(request(tmp_path / "new" / "folder", seed=4), SILENT)
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == {job.JSON, job.CSV, job.PICTURE}
    written = json.loads((folder / job.JSON).read_text())
    assert written["source"]["seed"] == 4
    assert len(written["cases"]) == len(profile.cases) == 4
    assert all(len(e["seconds"]) == 2 for case in written["cases"] for e in case["entries"])
    assert all(e["peak_extra_bytes"] > 0 for case in written["cases"] for e in case["entries"])


def test_a_profile_is_replaced_only_by_force(tmp_path):
    (tmp_path / job.JSON).write_text("mine")
    with pytest.raises(BucketRankError, match="--force"):
        job.profile_losses(request(tmp_path), SILENT)
    assert (tmp_path / job.JSON).read_text() == "mine"
    job.profile_losses(request(tmp_path, force=True), SILENT)
    assert (tmp_path / job.JSON).read_text() != "mine"


def test_a_case_that_does_not_fit_is_marked_and_the_others_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(
        memory, "too_large_to_make", lambda point, *_: "too big" if point.negatives > 300 else None
    )
    profile = job.profile_losses(request(tmp_path), SILENT)
    skipped = [{entry.skipped for entry in case.entries} for case in profile.cases]
    assert skipped == [{None}, {"too big"}, {None}, {"too big"}]


def test_what_does_not_exist_is_named(tmp_path):
    with pytest.raises(BucketRankError, match="'tpu0'"):
        job.profile_losses(request(tmp_path, device="tpu0"), SILENT)
    with pytest.raises(BucketRankError, match="int8"):
        job.profile_losses(request(tmp_path, dtype="int8"), SILENT)
    assert not list(tmp_path.iterdir())


def test_what_belongs_to_a_config_needs_one():
    assert job.training_step(None, None, [], 0) is None
    step = job.training_step("retinanet_tiny", "cells", ["A", "1"], 3)
    assert step == job.TrainingStep("retinanet_tiny", "cells", ("A", "1"), 3)
    for arguments in ((None, "cells", [], 0), (None, None, ["A", "1"], 0), (None, None, [], 3)):
        with pytest.raises(BucketRankError, match="--from-training"):
            job.training_step(*arguments)
