"""What prediction needs beside the model: thresholds and picture files."""

import json

import pytest

from bucketed_ranking.engine import inference
from bucketed_ranking.engine.setup import load_config
from bucketed_ranking.errors import BucketRankError


def test_pictures_are_drawn_above_the_runs_own_best_threshold(tmp_path):
    assert inference.best_threshold(None) == inference.DEFAULT_SCORE_THRESHOLD
    assert inference.best_threshold(tmp_path) == inference.DEFAULT_SCORE_THRESHOLD
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"bbox": {"score_threshold": 0.62}}))
    assert inference.best_threshold(tmp_path) == 0.62
    results.write_text(json.dumps({"segm": {"score_threshold": 0.4}}))  # Cityscapes has no boxes
    assert inference.best_threshold(tmp_path) == 0.4
    results.write_text(json.dumps({"bbox": {"score_threshold": None}}))
    assert inference.best_threshold(tmp_path) == inference.DEFAULT_SCORE_THRESHOLD


def test_a_folder_stands_for_the_pictures_in_it(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt"):
        (tmp_path / name).touch()
    assert inference.list_images([tmp_path]) == [tmp_path / "a.PNG", tmp_path / "b.jpg"]


@pytest.mark.parametrize("missing", ["none.jpg", "empty"])
def test_missing_pictures_are_told(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BucketRankError, match=r"There (is|are) no picture"):
        inference.list_images([tmp_path / missing])


def test_a_run_without_a_checkpoint_is_told(tmp_path):
    (tmp_path / "config.yaml").write_text(load_config("retinanet_tiny", device="cpu").dump())
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(BucketRankError, match="has no checkpoint yet"):
        inference.load_detector(str(tmp_path))
