"""RankingRPN: every anchor takes part, and its losses carry their names and weight."""

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from bucketed_ranking.modeling.ranking import WRITE_PERIOD
from tests.small_detectors import narrow_config, random_batch


def rpn_call(*options: str):
    torch.manual_seed(0)
    model = build_model(narrow_config("faster_rcnn_tiny", "brs", *options)).train()
    rpn, seen = model.proposal_generator, {}
    rpn.criterion.register_forward_pre_hook(
        lambda module, args: seen.update(logits=args[0], labels=args[1])
    )
    with EventStorage(WRITE_PERIOD - 1) as storage:
        losses = model(random_batch())
    return storage.latest(), seen, losses


def test_no_anchor_is_left_out_by_sampling():
    statistics, seen, _ = rpn_call("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "4")
    positives, negatives = (seen["labels"] == 0).sum(), (seen["labels"] == 1).sum()
    ignored = (seen["labels"] == -1).sum()
    assert positives > 8 or negatives > 8
    assert positives + negatives + ignored == len(seen["logits"])
    assert ignored < 0.5 * len(seen["logits"])
    assert statistics["rpn/num_positives"][0] == positives


def test_losses_have_the_rpns_names_and_weight():
    *_, losses = rpn_call()
    *_, heavier = rpn_call("MODEL.RANKING.RPN_LOSS_WEIGHT", "2.0")
    names = ("loss_rpn_rank", "loss_rpn_sort", "loss_rpn_box_reg")
    for name in names:
        torch.testing.assert_close(heavier[name], 2 * losses[name])
    assert set(losses) == {*names, "loss_rank", "loss_sort", "loss_box_reg"}


def test_parameters_are_those_of_rpn():
    ranking = build_model(narrow_config("faster_rcnn_tiny", "brs")).proposal_generator.state_dict()
    score = build_model(narrow_config("faster_rcnn_tiny", "score")).proposal_generator.state_dict()
    assert {k: v.shape for k, v in ranking.items()} == {k: v.shape for k, v in score.items()}
