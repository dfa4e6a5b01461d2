"""The criterion that a config describes."""

import pytest

from bucketed_ranking.errors import BucketRankError
from bucketed_ranking.modeling.ranking import build_criterion
from tests.small_detectors import narrow_config


def criterion(loss: str, *options: str, weight: float = 1.0):
    return build_criterion(narrow_config("retinanet_tiny", loss, *options), weight)


@pytest.mark.parametrize(
    ("loss", "delta", "interpolated", "self_balance", "box_weight"),
    [("rs-exact", 0.5, False, True, 1.0), ("ap", 1.0, True, False, 2.0),
     ("bap", 1.0, False, False, 2.0), ("alrp", 1.0, False, True, 1.0)],
)  # fmt: skip
def test_defaults_are_those_of_the_objectives(loss, delta, interpolated, self_balance, box_weight):
    built = criterion(loss)
    assert (built.loss.name, built.loss.delta, built.loss.interpolated) == (
        loss, delta, interpolated,
    )  # fmt: skip
    assert (built.self_balance, built.box_weight, built.weight) == (self_balance, box_weight, 1.0)


def test_every_option_of_the_config_arrives():
    built = criterion(
        "ap-exact",
        "MODEL.RANKING.DELTA", "0.25", "MODEL.RANKING.INTERPOLATED", "False",
        "MODEL.RANKING.SELF_BALANCE", "True", "MODEL.RANKING.BOX_LOSS_WEIGHT", "3.0",
        "MODEL.RANKING.CHUNK_SIZE", "1000",
        weight=0.2,
    )  # fmt: skip
    assert (built.loss.delta, built.loss.interpolated) == (0.25, False)
    assert (built.self_balance, built.box_weight, built.weight) == (True, 3.0, 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.RANKING.DELTA", "-1.0"], "delta must be"),
        (["MODEL.RANKING.INTERPOLATED", "True"], "only the AP loss can be interpolated"),
        (["MODEL.RANKING.CHUNK_SIZE", "10"], "only algorithm 'exact' has a chunk_size"),
    ],
)
def test_options_that_do_not_suit_the_loss_are_told(options, message):
    with pytest.raises(BucketRankError, match=message):
        criterion("brs", *options)


def test_a_ranking_head_with_the_score_loss_is_told():
    cfg = narrow_config("retinanet_tiny", "brs")
    cfg.MODEL.RANKING.LOSS = "score"
    with pytest.raises(BucketRankError, match="use Detectron2's own head"):
        build_criterion(cfg)
