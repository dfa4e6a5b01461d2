"""Cells in processes of their own: where they run, and how they end."""

import io
import signal
import sys
from dataclasses import dataclass

import pytest
from rich.console import Console

pytest.importorskip("detectron2", reason="detectron2 is not installed")


from bucketed_ranking.benchmarks import cell_processes, table
from bucketed_ranking.benchmarks import cell_records as records
from bucketed_ranking.benchmarks.cell_processes import (
    CellRunner,
    Place,
    make_places,
    seconds_left,
    seconds_per_iteration,
)
from bucketed_ranking.benchmarks.cells import Cell
from bucketed_ranking.benchmarks.table import choose_places
from bucketed_ranking.errors import BucketRankError
from tests.benchmarks.stored import write_cell


@dataclass(frozen=True)
class Scripted(Cell):
    """A cell whose process runs a line of Python instead of a training."""

    script: str = ""

    def command(self):
        return [sys.executable, "-c", self.script]


def scripted(output, name, script):
    folder = output / "cells" / f"{name}-brs-seed1"
    return Scripted(name, "brs", 1, None, (), folder, max_iter=100, script=script)


ONE = Place()


def run(cells, places=(ONE,)):
    printed = io.StringIO()
    assert CellRunner(cells, places, Console(file=printed, width=200)).run()
    return printed.getvalue()


def test_a_cell_that_fails_says_why_and_the_others_go_on(tmp_path):
    raising = scripted(tmp_path, "raising", "raise ValueError('no such thing')")
    killed = scripted(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)")
    silent = scripted(tmp_path, "silent", "raise SystemExit(3)")
    marker = tmp_path / "ran"
    last = scripted(tmp_path, "last", f"open({str(marker)!r}, 'w')")
    printed = run([raising, killed, silent, last])
    errors = {cell.config: records.read_record(cell)["error"] for cell in (raising, killed, silent)}
    assert errors["raising"] == "ValueError: no such thing"
    assert "SIGKILL" in errors["killed"]
    assert "memory" in errors["killed"]
    assert "exit code 3" in errors["silent"]
    assert "raising-brs-seed1: failed, ValueError: no such thing" in printed
    assert marker.exists()


def test_a_run_whose_process_died_is_marked_in_its_record(tmp_path):
    write_cell(tmp_path, "dying", "brs", 1, state="training", iterations=7)
    cell = scripted(tmp_path, "dying", "import os; os.kill(os.getpid(), 9)")
    run([cell])
    record = records.read_record(cell)
    assert (record["state"], record["iterations"]) == (records.FAILED, 50)
    assert "SIGKILL" in record["error"]


def test_a_finished_cell_and_one_that_cannot_be_run_are_left_alone(tmp_path):
    write_cell(tmp_path, "done", "brs", 1)
    done = scripted(tmp_path, "done", "raise SystemExit(1)")
    folder = tmp_path / "cells" / "obstructed-brs-seed1"
    obstructed = Scripted("obstructed", "brs", 1, None, (), folder, obstacle="no data")
    printed = run([done, obstructed])
    assert "done-brs-seed1: finished, box AP 50.0" in printed
    assert "cannot be run, no data" in printed
    assert not done.log.exists()
    assert not obstructed.log.exists()


def test_cells_share_the_gpus_that_the_user_has(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    script = "import os; open(os.environ['WHERE'] + os.environ['CUDA_VISIBLE_DEVICES'], 'w')"
    monkeypatch.setenv("WHERE", str(tmp_path / "gpus-"))
    run([scripted(tmp_path, name, script) for name in "abc"], make_places(4, 2, jobs=1))
    assert sorted(path.name for path in tmp_path.glob("gpus-*")) == ["gpus-2,3", "gpus-5,7"]


def test_places():
    assert [place.gpus for place in make_places(5, 2, jobs=1)] == [(0, 1), (2, 3)]
    assert make_places(0, 1, jobs=1) == [Place()]
    shared = make_places(0, 1, jobs=2)
    assert len(shared) == 2
    assert shared[0].environment()["OMP_NUM_THREADS"] == str(shared[0].threads)
    assert make_places(0, 2, jobs=1) == [Place(processes=2)]


def test_a_signal_stops_the_cells_and_starts_no_other(tmp_path):
    # The cell sends the signal to this process, as a user's Ctrl-C would.
    pid = cell_processes.os.getpid()
    script = f"import os, signal, time; os.kill({pid}, signal.SIGINT); time.sleep(60)"
    first = scripted(tmp_path, "first", script)
    second = scripted(tmp_path, "second", "pass")
    before = signal.getsignal(signal.SIGINT)
    assert not CellRunner([first, second], [ONE], Console(file=io.StringIO())).run()
    assert not second.log.exists()
    assert records.read_record(first)["state"] == records.PENDING
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def num_gpus(monkeypatch):
    """Sets how many GPUs this machine has."""
    return lambda count: monkeypatch.setattr(table.torch.cuda, "device_count", lambda: count)


def test_places_that_are_not_there(num_gpus):
    num_gpus(2)
    with pytest.raises(BucketRankError, match="--gpus is 99"):
        choose_places(99, 1, 1, None)
    with pytest.raises(BucketRankError, match="--processes-per-cell is 4"):
        choose_places(None, 4, 1, None)
    assert len(choose_places(8, 2, 1, None, here=False)) == 4
    assert len(choose_places(None, 4, 1, None, here=False)[0].gpus) == 4


@pytest.mark.parametrize(("there", "each", "places"), [(8, 4, 2), (4, 4, 1), (3, 2, 1), (1, 1, 1)])
def test_cells_of_the_paper_get_its_four_gpus_where_they_are_there(num_gpus, there, each, places):
    num_gpus(there)
    chosen = choose_places(None, None, 1, None, paper=True)
    assert [len(place.gpus) for place in chosen] == [each] * places
    assert len(choose_places(None, None, 1, None)[0].gpus) == 1
    assert choose_places(None, None, 1, "cpu", paper=True) == [ONE]
    assert choose_places(None, 2, 1, "cpu")[0].processes == 2


def planned(output, config, loss, max_iter=1000):
    folder = output / "cells" / f"{config}-{loss}-seed1"
    return Cell(config, loss, 1, None, (), folder, max_iter=max_iter)


def test_finished_cells_tell_the_time_before_the_paper_does(tmp_path):
    config = "faster_rcnn_R_50_FPN_1x"
    assert seconds_per_iteration(config, "brs", []) == (0.17, "published, 4 A100")
    assert seconds_per_iteration(config, "score", []) is None
    write_cell(tmp_path, config, "rs", 1, seconds=3.0)
    known = [records.read_record(planned(tmp_path, config, "rs", max_iter=100))]
    assert seconds_per_iteration(config, "rs", known) == (3.0, "finished cells")
    other = "finished cells with other losses"
    assert seconds_per_iteration(config, "brs", known) == (3.0, other)
    assert seconds_per_iteration("retinanet_tiny", "rs", known) is None
    assert seconds_left(records.read_record(planned(tmp_path, config, "brs")), known) > 3000
