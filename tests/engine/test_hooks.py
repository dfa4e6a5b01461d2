"""Hooks on their own: statistics arrive, metrics are trimmed."""

import json
from types import SimpleNamespace

from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from bucketed_ranking.engine.hooks import RankingStatistics, StepTimer, drop_metrics_after
from tests.small_detectors import narrow_config, random_batch


def test_without_enough_steps_there_is_no_time():
    timer = StepTimer("cpu")
    timer.seconds = [9.0] * 10
    assert timer.median_seconds() is None
    timer.seconds += [1.0, 3.0, 2.0]
    assert timer.median_seconds() == 2.0


def test_statistics_of_every_head_reach_the_storage():
    model = build_model(narrow_config("faster_rcnn_tiny", "brs")).train()
    hook = RankingStatistics(model, period=2)
    with EventStorage() as storage:
        model(random_batch())
        for iteration in range(2):
            hook.trainer = SimpleNamespace(iter=iteration, storage=storage)
            hook.after_step()
            names = set(storage.latest())
            assert any("num_positives" in name for name in names) == (iteration == 1)
        assert "proposal_generator.criterion/ranking_error" in names
        assert "roi_heads.box_predictor.criterion/sorting_error" in names


def test_metrics_written_after_the_last_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("".join(json.dumps({"iteration": i}) + "\n" for i in (19, 39, 59)))
    drop_metrics_after(path, 40)
    assert path.read_text() == '{"iteration": 19}\n{"iteration": 39}\n'
    drop_metrics_after(tmp_path / "none.json", 40)
    assert not (tmp_path / "none.json").exists()
