"""What a step of training hands to the losses."""

import pytest
import torch
from rich.console import Console

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from bucketed_ranking.benchmarks import loss_profile
from bucketed_ranking.benchmarks.loss_cases import ALL_LOSSES
from bucketed_ranking.benchmarks.timing import Timing, TimingOptions
from bucketed_ranking.console import ProgressDisplay
from bucketed_ranking.errors import BucketRankError
from tests.small_detectors import NARROW


@pytest.fixture
def capture(blobs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(config: str, *options: str, after: int = 0):
        return loss_profile.capture_cases(
            config=config,
            dataset=blobs,
            options=[*NARROW, *options],
            device="cpu",
            after=after,
            dtype=torch.float32,
        )

    yield run
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "names", "columns"),
    [
        ("retinanet_tiny", ["RankingRetinaNet"], [3]),
        ("paa_tiny", ["RankingPAA"], [3]),
        ("faster_rcnn_tiny", ["RankingRPN", "RankingFastRCNNOutputLayers"], [1, 3]),
    ],
)
def test_each_head_gives_a_case_that_every_loss_can_be_timed_on(capture, config, names, columns):
    cases = capture(config)
    assert [case.name.split(",")[0] for case in cases] == names
    assert [case.logits.shape[1] for case in cases] == columns
    for case in cases:
        assert case.num_positives > 0
        assert not case.logits.requires_grad
        assert ((case.box_losses >= 0) & (case.box_losses <= 1)).all()
        assert ((case.qualities > 0) & (case.qualities <= 1)).all()
        timings = [Timing(loss) for loss in ALL_LOSSES]
        options, progress = TimingOptions(repeats=1, warmup=0), ProgressDisplay(9, Console())
        loss_profile.measure_case(case, timings, options, progress)
        assert all(timing.skipped is None and timing.seconds for timing in timings)


def test_training_goes_on_before_the_step(capture):
    (first,), (later,) = capture("retinanet_tiny"), capture("retinanet_tiny", after=2)
    assert first.logits.shape != later.logits.shape or not torch.equal(first.logits, later.logits)


def test_a_detector_without_ranking_losses_is_refused(capture):
    with pytest.raises(BucketRankError, match="no ranking criterion"):
        capture("retinanet_tiny", "MODEL.RANKING.LOSS", "score")
