"""What hooks need: metrics are trimmed."""

import json

from bucketed_ranking.engine.hooks import drop_metrics_after


def test_metrics_written_after_the_last_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("".join(json.dumps({"iteration": i}) + "\n" for i in (19, 39, 59)))
    drop_metrics_after(path, 40)
    assert path.read_text() == '{"iteration": 19}\n{"iteration": 39}\n'
    drop_metrics_after(tmp_path / "none.json", 40)
    assert not (tmp_path / "none.json").exists()
