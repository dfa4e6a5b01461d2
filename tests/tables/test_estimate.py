"""How long cells take."""

import pytest

from bucketed_ranking.tables.estimate import Estimates, in_words
from bucketed_ranking.tables.grid import Cell
from tests.tables.stored import write_cell


def cell(output, config, loss, max_iter=1000):
    folder = output / "cells" / f"{config}-{loss}-seed1"
    return Cell(config, loss, 1, None, (), folder, max_iter=max_iter)


def test_what_has_been_seen_comes_before_probes_and_those_before_the_paper(tmp_path):
    config = "faster_rcnn_R_50_FPN_1x"
    write_cell(tmp_path, config, "rs", 1, seconds=3.0)
    cells = [cell(tmp_path, config, "rs", max_iter=100)]
    estimates = Estimates(cells, {(config, "rs"): 1.0, (config, "score"): 2.0})
    assert estimates.per_iteration(config, "rs") == (3.0, "finished cells")
    # What was probed takes as much longer as the finished cells took.
    assert estimates.per_iteration(config, "score")[0] == pytest.approx(6.0)
    assert estimates.per_iteration(config, "brs") == (0.17, "published, 4 A100")
    assert estimates.per_iteration(config, "alrp") is None


def test_a_running_cell_is_judged_by_its_own_pace(tmp_path):
    one = cell(tmp_path, "retinanet_tiny", "brs")
    estimates = Estimates([one], {("retinanet_tiny", "brs"): 1.0})
    assert estimates.seconds(one) > 1000
    assert estimates.left(one, 200, 300, elapsed=50.0) == pytest.approx(350.0)
    assert estimates.left(one, 0, 0, elapsed=100.0) == estimates.seconds(one) - 100
    assert Estimates([one]).left(one, 0, 0, elapsed=5.0) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(42, "42 s"), (780, "13 min"), (3 * 3600, "3.0 h"), (3 * 86400, "3.0 days")],
)
def test_in_words(seconds, words):
    assert in_words(seconds) == words
