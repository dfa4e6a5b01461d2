"""`profile-loss` as a whole: which losses are called, what is made of their times, its files."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bucketed_ranking.benchmarks import loss_profile, timing
from bucketed_ranking.benchmarks.loss_cases import Case, GridPoint, LossCalls, make_case, make_grid
from bucketed_ranking.benchmarks.timing import Timing, TimingOptions
from bucketed_ranking.console import ProgressDisplay
from bucketed_ranking.errors import BucketRankError
from tests.benchmarks import given

SILENT = Console(file=io.StringIO())
QUICK = TimingOptions(repeats=3, warmup=1)


def profile(output: Path, **changes) -> dict:
    settings = {
        "losses": ["rs-exact", "focal", "sort"],
        "grid": make_grid("both", [5], [200, 400]),
        "options": TimingOptions(repeats=2, warmup=1),
        "device": "cpu",
        **changes,
    }
    return loss_profile.profile_losses(output=output, console=SILENT, **settings)


def measure_case(case: Case, losses: list[str], options: TimingOptions = QUICK) -> list[Timing]:
    timings = [Timing(loss) for loss in losses]
    loss_profile.measure_case(case, timings, options, ProgressDisplay(9, SILENT))
    return timings


def test_everything_lands_in_the_folder(tmp_path):
    folder = tmp_path / "new" / "folder"
    returned = profile(folder, seed=4)
    names = {loss_profile.JSON, loss_profile.CSV, loss_profile.PICTURE}
    assert {path.name for path in folder.iterdir()} == names
    written = json.loads((folder / loss_profile.JSON).read_text())
    assert written == returned
    assert written["source"]["seed"] == 4
    assert len(written["cases"]) == 4
    assert "eager" in written["methods"]["focal"]
    assert "profiler" in written["methods"]["memory"]
    assert written["machine"]["threads"] == torch.get_num_threads()
    assert all(len(e["seconds"]) == 2 for case in written["cases"] for e in case["entries"])
    assert all(e["peak_extra_bytes"] > 0 for case in written["cases"] for e in case["entries"])


def test_a_profile_is_replaced_only_by_force(tmp_path):
    (tmp_path / loss_profile.JSON).write_text("mine")
    with pytest.raises(BucketRankError, match="--force"):
        profile(tmp_path)
    assert (tmp_path / loss_profile.JSON).read_text() == "mine"
    profile(tmp_path, force=True)
    assert (tmp_path / loss_profile.JSON).read_text() != "mine"


def test_a_case_that_does_not_fit_is_marked_and_the_others_are_measured(tmp_path):
    grid = make_grid("start", [5], [200, 10**14])
    written = profile(tmp_path, grid=grid)
    small, huge = ({entry["skipped"] for entry in case["entries"]} for case in written["cases"])
    assert small == {None}
    (reason,) = huge
    assert reason.startswith("out of memory: ")


def test_what_does_not_exist_is_named(tmp_path):
    with pytest.raises(BucketRankError, match="'tpu0'"):
        profile(tmp_path, device="tpu0")
    assert not list(tmp_path.iterdir())


def test_a_loop_that_would_take_too_long_is_not_called(monkeypatch):
    case = make_case(GridPoint("start", 1000, 5000), dtype=torch.float32, device="cpu", seed=0)
    monkeypatch.setattr(loss_profile, "_seconds_thinned", lambda loss, case, count: 2 + count)
    rs, focal = measure_case(case, ["rs", "focal"])
    assert rs.predicted_seconds == pytest.approx(1002)
    assert rs.skipped == "predicted to take 1e+03 s a call; at most 20 s wanted"
    assert len(focal.seconds) == 3


def test_bucketed_losses_are_predicted_to_grow_with_pairs(monkeypatch):
    case = make_case(GridPoint("start", 4000, 5000), dtype=torch.float32, device="cpu", seed=0)
    monkeypatch.setattr(loss_profile, "_seconds_thinned", lambda loss, case, n: n**2 / 1e5)
    (brs,) = measure_case(case, ["brs"])
    assert brs.predicted_seconds == pytest.approx(160)
    assert brs.skipped


def test_a_call_that_takes_too_long_is_the_only_one(case, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(LossCalls, "build", lambda self, loss: lambda: calls.append(loss))
    monkeypatch.setattr(timing, "timed", lambda call, device: (call(), 1.0)[1])
    monkeypatch.setattr(timing, "peak_bytes", lambda call, device: 8)
    (focal,) = measure_case(case, ["focal"], TimingOptions(repeats=9, warmup=3, max_seconds=0.5))
    assert calls == ["focal"]
    assert focal.skipped == "one call took 1 s; at most 0.5 s wanted"
    assert focal.seconds == []


@pytest.mark.parametrize("error", [MemoryError("none left"), RuntimeError("can't allocate memory")])
def test_running_out_of_memory_skips_one_loss(case, monkeypatch, error):
    build = LossCalls.build

    def failing() -> None:
        raise error

    monkeypatch.setattr(
        LossCalls, "build", lambda self, loss: failing if loss == "brs" else build(self, loss)
    )
    brs, exact = measure_case(case, ["brs", "rs-exact"])
    assert brs.skipped == f"out of memory: {error}"
    assert len(exact.seconds) == 3


def test_other_errors_are_not_hidden(case, monkeypatch):
    def failing() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(LossCalls, "build", lambda self, loss: failing)
    with pytest.raises(RuntimeError, match="a bug"):
        measure_case(case, ["brs"])


def test_a_case_without_positives_is_marked(case):
    nothing = {name: getattr(case, name)[:0] for name in ("positives", "qualities", "box_losses")}
    focal, sort = measure_case(replace(case, **nothing), ["focal", "sort"])
    assert focal.skipped == "the case has no positives"
    assert sort.seconds


def test_progress_is_told_as_often_as_announced(tmp_path, monkeypatch):
    announced: list[int] = []
    monkeypatch.setattr(
        ProgressDisplay, "advance", lambda self, text: announced.append(self._total)
    )
    profile(tmp_path)
    assert set(announced) == {len(announced)}


@pytest.fixture
def entries() -> dict[str, dict]:
    return {entry["loss"]: entry for entry in given.case()["entries"]}


def test_ratios_are_those_of_medians(entries):
    assert entries["rs"]["median_s"] == 8
    assert entries["brs"]["times_faster_than_loop"] == 4
    assert entries["rs-exact"]["times_faster_than_loop"] == 8
    assert entries["rs"]["times_faster_than_loop"] == 1
    assert entries["rs-exact"]["times_focal"] == 2
    assert entries["focal"]["times_focal"] == 1
    assert entries["sort"]["times_focal"] == 0.5


def test_what_is_not_known_is_none(entries):
    assert entries["ap"]["median_s"] is None
    assert entries["ap"]["skipped"] == given.TOO_SLOW
    assert entries["ap-exact"]["times_faster_than_loop"] is None
    assert entries["focal"]["times_faster_than_loop"] is None


def test_spread_and_memory(entries):
    exact = entries["rs-exact"]
    assert (exact["quartile_1_s"], exact["quartile_3_s"]) == (0.75, 1.25)
    assert (entries["rs"]["min_s"], entries["rs"]["max_s"]) == (7, 20)
    assert entries["sort"]["quartile_1_s"] == entries["sort"]["quartile_3_s"] == 0.25
    assert entries["brs"]["peak_extra_bytes_per_logit"] == 4000


def test_each_line_of_the_csv_stands_alone(tmp_path):
    loss_profile.write_profile(given.profile(given.case("start"), given.case("trained")), tmp_path)
    with (tmp_path / loss_profile.CSV).open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 14
    assert {line["regime"] for line in lines} == {"start", "trained"}
    for line in lines:
        assert line["cpu"] == "Some CPU"
        assert line["date"] == "2026-11-22T12:00:00+00:00"
        assert bool(line["median_s"]) != bool(line["skipped"])
