"""How losses look in plots."""

from bucketed_ranking.benchmarks.loss_cases import ALL_LOSSES
from bucketed_ranking.config import SCORE_LOSS
from bucketed_ranking.loss_styles import LABELS, style_of
from bucketed_ranking.losses import QUALITY_LOSSES


def test_every_loss_has_a_label():
    assert set(LABELS) == {*ALL_LOSSES, *QUALITY_LOSSES, SCORE_LOSS}


def test_losses_that_share_a_plot_look_different():
    styles = {style_of(loss) for loss in ALL_LOSSES}
    assert len(styles) == len(ALL_LOSSES)
    ours = [loss for loss in LABELS if loss not in ("focal", "ce", "sort")]
    assert len({style_of(loss) for loss in ours}) == len(ours)
