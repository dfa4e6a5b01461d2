"""Progress off a terminal."""

import io

from rich.console import Console

from bucketed_ranking.profiling.progress import StepProgress


def test_off_a_terminal_lines_come_now_and_then(monkeypatch):
    clock = iter([0.0, 1.0, 6.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    output = io.StringIO()
    progress = StepProgress(3, Console(file=output))
    for text in ("first [1, 2]", "second", "third"):
        progress.advance(text)
    assert output.getvalue() == "1/3 first [1, 2]\n3/3 third\n"
