"""Hooks on their own: steps are timed, metrics are trimmed."""

import json

from bucketed_ranking.engine.hooks import StepTimer, drop_metrics_after


def test_without_enough_steps_there_is_no_time():
    timer = StepTimer("cpu")
    timer.seconds = [9.0] * 10
    assert timer.median_seconds() is None
    timer.seconds += [1.0, 3.0, 2.0]
    assert timer.median_seconds() == 2.0


def test_metrics_written_after_the_last_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("".join(json.dumps({"iteration": i}) + "\n" for i in (19, 39, 59)))
    drop_metrics_after(path, 40)
    assert path.read_text() == '{"iteration": 19}\n{"iteration": 39}\n'
    drop_metrics_after(tmp_path / "none.json", 40)
    assert not (tmp_path / "none.json").exists()
