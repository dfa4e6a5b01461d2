"""The paper's numbers: each once, and consistent with each other."""

import subprocess
import sys

from bucketed_ranking.losses import LOSS_NAMES
from bucketed_ranking.published import PUBLISHED, published


def test_each_detector_and_loss_has_one_row():
    keys = [(row.config, row.loss) for row in PUBLISHED]
    assert len(set(keys)) == len(keys) == 29
    assert {row.loss for row in PUBLISHED} <= {"score", *LOSS_NAMES}


def test_a_row_is_found_by_config_and_loss():
    row = published("faster_rcnn_R_50_FPN_1x", "brs")
    assert (row.ap, row.seconds_per_iteration, row.speed_up) == (39.5, 0.17, 3.0)
    assert published("faster_rcnn_R_50_FPN_1x", "rs-exact") is None


def test_two_stage_detectors_have_the_papers_score_thresholds_on_coco_and_lvis():
    thresholds = {"COCO": "0.4", "LVIS v1": "0.6"}
    for row in PUBLISHED:
        two_stage = row.detector.endswith("R-CNN") and row.dataset in thresholds
        key = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST",)
        assert row.options == ((*key, thresholds[row.dataset]) if two_stage else ()), row


def test_published_speed_ups_are_the_ratios_of_the_published_times():
    """To the half tenth by which the times are rounded; a typing error would show here."""
    compared = 0
    for row in PUBLISHED:
        before = published(row.config, {"brs": "rs", "bap": "ap"}.get(row.loss, ""))
        if before is None or None in (row.seconds_per_iteration, before.seconds_per_iteration):
            continue
        low = (before.seconds_per_iteration - 0.005) / (row.seconds_per_iteration + 0.005)
        high = (before.seconds_per_iteration + 0.005) / (row.seconds_per_iteration - 0.005)
        assert low - 0.1 <= row.speed_up <= high + 0.1, row
        compared += 1
    assert compared == 10


def test_it_needs_no_detectron2():
    script = "import sys; sys.modules['detectron2'] = None; import bucketed_ranking.published"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True)
