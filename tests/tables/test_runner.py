"""Cells in processes of their own: where they run, and how they end."""

import io
import signal
import sys
from dataclasses import dataclass

import pytest
from rich.console import Console

from bucketed_ranking.errors import BucketRankError
from bucketed_ranking.tables import records, runner
from bucketed_ranking.tables.estimate import Estimates
from bucketed_ranking.tables.grid import Cell
from bucketed_ranking.tables.job import choose_room, parse_seeds
from bucketed_ranking.tables.runner import Slot, make_slots, run_cells
from tests.tables.stored import write_cell


@dataclass(frozen=True)
class Scripted(Cell):
    """A cell whose process runs a line of Python instead of a training."""

    script: str = ""

    def command(self, num_gpus=1):
        return [sys.executable, "-c", self.script]


def scripted(output, name, script):
    folder = output / "cells" / f"{name}-brs-seed1"
    return Scripted(name, "brs", 1, None, (), folder, max_iter=100, script=script)


ONE = Slot()


def run(cells, slots=(ONE,)):
    printed = io.StringIO()
    run_cells(cells, slots, Console(file=printed, width=200), Estimates(cells))
    return printed.getvalue()


def test_a_cell_that_fails_says_why_and_the_others_go_on(tmp_path):
    raising = scripted(tmp_path, "raising", "raise ValueError('no such thing')")
    killed = scripted(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)")
    silent = scripted(tmp_path, "silent", "raise SystemExit(3)")
    marker = tmp_path / "ran"
    last = scripted(tmp_path, "last", f"open({str(marker)!r}, 'w')")
    printed = run([raising, killed, silent, last])
    errors = {cell.config: records.read_record(cell).error for cell in (raising, killed, silent)}
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
    assert (record.state, record.iterations) == (records.FAILED, 50)
    assert "SIGKILL" in record.error


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
    run([scripted(tmp_path, name, script) for name in "abc"], make_slots(4, 2, jobs=1))
    assert sorted(path.name for path in tmp_path.glob("gpus-*")) == ["gpus-2,3", "gpus-5,7"]


def test_slots():
    assert [slot.gpus for slot in make_slots(5, 2, jobs=1)] == [(0, 1), (2, 3)]
    assert make_slots(0, 1, jobs=1) == [Slot()]
    shared = make_slots(0, 1, jobs=2)
    assert len(shared) == 2
    assert shared[0].environment()["OMP_NUM_THREADS"] == str(shared[0].threads)


def test_a_signal_stops_the_cells_and_starts_no_other(tmp_path):
    # The cell sends the signal to this process, as a user's Ctrl-C would.
    pid = runner.os.getpid()
    script = f"import os, signal, time; os.kill({pid}, signal.SIGINT); time.sleep(60)"
    first = scripted(tmp_path, "first", script)
    second = scripted(tmp_path, "second", "pass")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(runner.InterruptedTableError):
        run([first, second])
    assert not second.log.exists()
    assert records.read_record(first).state == records.PENDING
    assert signal.getsignal(signal.SIGINT) is before


def test_rooms_and_seeds_that_are_not_there():
    with pytest.raises(BucketRankError, match="--gpus is 99"):
        choose_room(99, 1, 1, None)
    assert len(choose_room(8, 2, 1, None, here=False).slots) == 4
    assert choose_room(None, 4, 1, None, here=False).gpus_per_cell == 4
    with pytest.raises(BucketRankError, match="such as 1,2,3"):
        parse_seeds("1,x")
    assert parse_seeds("3, 1,3") == (3, 1)
