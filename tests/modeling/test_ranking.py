"""The criterion that a config describes, and what its heads put into the event storage."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from bucketed_ranking.balance import EpochBalance
from bucketed_ranking.config import EXACT_SCOPE, ranking_scope
from bucketed_ranking.errors import BucketRankError
from bucketed_ranking.modeling.ranking import WRITE_PERIOD, build_criterion
from tests.small_detectors import narrow_config, random_batch


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
        (["MODEL.RANKING.DELTA", "-1.0"], "MODEL.RANKING.DELTA is -1.0; it must be 0 or more"),
        (["MODEL.RANKING.INTERPOLATED", "True"], "only the AP loss can be interpolated"),
        (["MODEL.RANKING.CHUNK_SIZE", "10"], "only algorithm 'exact' has a chunk_size"),
    ],
)
def test_options_that_do_not_suit_the_loss_are_told(options, message):
    with pytest.raises(BucketRankError, match=message):
        criterion("brs", *options)


def test_what_a_ranking_spans():
    for loss, default in (("rs-exact", EXACT_SCOPE), ("brs", "process"), ("score", "process")):
        assert ranking_scope(narrow_config("retinanet_tiny", loss)) == default
    option = "MODEL.RANKING.SCOPE"
    for scope in ("process", "global"):
        cfg = narrow_config("mask_rcnn_tiny", "ap-exact", option, scope)
        assert ranking_scope(cfg) == scope
        assert {m.scope for m in build_model(cfg).modules() if hasattr(m, "scope")} == {scope}
    for loss in ("bap", "alrp"):
        with pytest.raises(BucketRankError, match=f"{loss} ranks the images of each process"):
            narrow_config("retinanet_tiny", loss, option, "global")
    with pytest.raises(BucketRankError, match="SCOPE is 'all'; use process or global"):
        narrow_config("retinanet_tiny", "rs-exact", option, "all")


def test_a_ranking_head_with_the_score_loss_is_told():
    cfg = narrow_config("retinanet_tiny", "brs")
    cfg.MODEL.RANKING.LOSS = "score"
    with pytest.raises(BucketRankError, match="use Detectron2's own head"):
        build_criterion(cfg)


def test_statistics_of_every_head_reach_the_storage_when_they_are_written():
    model = build_model(narrow_config("cascade_mask_rcnn_tiny", "brs")).train()
    with EventStorage() as storage:
        model(random_batch())
        assert not any(name.startswith("rpn/mean") for name in storage.latest())
        storage.iter = WRITE_PERIOD - 1
        model(random_batch())
    names = set(storage.latest())
    heads = ["rpn", "stage0/roi_head", "stage1/roi_head", "stage2/roi_head"]
    assert {f"{head}/ranking_error" for head in heads} <= names
    assert {f"{head}/mean_quality" for head in heads} <= names
    assert "mask_head/mask_error" in names


def test_only_alrp_is_balanced_over_epochs():
    for loss, expected in (("brs", 0), ("ap", 0), ("alrp-exact", 2)):
        papers = narrow_config("faster_rcnn_tiny", loss, "MODEL.RANKING.SELF_BALANCE", "None")
        model = build_model(papers)
        assert sum(isinstance(each, EpochBalance) for each in model.modules()) == expected
    off = build_model(narrow_config("faster_rcnn_tiny", "alrp"))  # by its recipe
    assert not any(isinstance(each, EpochBalance) for each in off.modules())


def test_a_head_with_alrp_balances_its_box_loss_over_epochs():
    torch.manual_seed(0)
    model = build_model(narrow_config("retinanet_tiny", "alrp-exact")).train()
    model.balance.epoch_iterations = 2
    with EventStorage(WRITE_PERIOD - 1) as storage:
        factors = []
        for _ in range(3):
            losses = model(random_batch())
            rank, box = (storage.latest()[f"dense_head/{k}_error"][0] for k in ("ranking", "box"))
            factors.append(losses["loss_box_reg"].item() / box)
    assert factors == pytest.approx([50, (rank + box) / box, (rank + box) / box])
