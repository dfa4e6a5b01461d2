"""ATSS: which anchors are positives, what centerness is and does, what ranking leaves out."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from bucketed_ranking.modeling.atss import atss_match_quality
from tests.small_detectors import narrow_config, random_batch

OBJECT = [0.0, 0.0, 20.0, 20.0]
LEVELS = [
    # IoU with OBJECT 1, 1/3, 0.6 and 0; distances of the centres 0, 10, 5 and far.
    [OBJECT, [10.0, 0, 30, 20], [0.0, 5, 20, 25], [100.0, 100, 120, 120]],
    # IoU 0.25 and 0.25; distances 14.1 and 0.
    [[0.0, 0, 40, 40], [-10.0, -10, 30, 30]],
]
FAR = [[x, 0.0, x + 20, 20] for x in (90.0, 95.0, 100.0)]


def match_quality(objects: list[list[float]], topk: int, levels=LEVELS):
    anchors = [Boxes(torch.tensor(level)) for level in levels]
    return atss_match_quality(anchors, Boxes(torch.tensor(objects).view(-1, 4)), topk)


def build(loss: str, *options: str):
    torch.manual_seed(0)
    return build_model(narrow_config("atss_tiny", loss, *options)).train()


def test_candidates_above_mean_plus_standard_deviation_are_positives():
    # Candidates 1, 0.6, 0.25, 0.25: mean 0.525, standard deviation 0.357.
    assert match_quality([OBJECT], topk=2).tolist() == [[1.0, -1, -1, -1, -1, -1]]
    # Candidates 1, 0.25: mean 0.625, standard deviation 0.530; none reaches 1.155.
    assert match_quality([OBJECT], topk=1).tolist() == [[-1.0] * 6]


def test_the_threshold_itself_is_a_positive_and_levels_are_small():
    # All candidates are the same: their IoU is the mean, the standard deviation is 0.
    quality = match_quality([OBJECT], 9, [[OBJECT], [OBJECT, OBJECT]])
    assert quality.tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize(("left", "positive"), [(-10.0, True), (-13.0, False)])
def test_a_positives_centre_lies_in_its_object(left, positive):
    # An IoU of 0.545 or 0.48 against thresholds of 0.41 and 0.36: only the centre tells them apart.
    quality = match_quality([[0.0, 0, 12, 20]], 9, [[[left, 0, 12, 20], *FAR]])
    assert (quality >= 0).tolist() == [[positive, False, False, False]]


def test_the_object_with_the_better_iou_has_the_anchor():
    model = build("brs")
    wide, tight = [0.0, 0, 30, 20], [0.0, 0, 21, 20]
    gt = Instances((200, 200))
    gt.gt_boxes, gt.gt_classes = Boxes(torch.tensor([wide, tight])), torch.tensor([3, 1])
    levels = [[OBJECT, *FAR]]
    assert (match_quality([wide, tight], 9, levels)[:, 0] > 0).all(), "both claim the anchor"
    empty = Instances((200, 200), gt_boxes=Boxes(torch.zeros(0, 4)))
    empty.gt_classes = torch.zeros(0, dtype=torch.int64)
    anchors = [Boxes(torch.tensor(level)) for level in levels]
    (labels, nothing), (boxes, _) = model.label_anchors(anchors, [gt, empty], [], [])
    assert labels[0] == 1
    assert boxes[0].tolist() == tight
    assert (labels[1:] == model.num_classes).all()
    assert (nothing == model.num_classes).all()


def test_centerness_is_one_in_the_middle_and_falls_to_the_border():
    anchors = torch.tensor([[8.0, 8, 12, 12], [3.0, 8, 7, 12], [-1.0, 3, 11, 7]])
    target = torch.tensor([OBJECT]).expand(3, 4)
    found = build("score").qualities(anchors, anchors, target)
    # Distances (10, 10, 10, 10); (5, 10, 15, 10); (5, 5, 15, 15).
    expected = [1.0, math.sqrt(1 / 3), 1 / 3]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("processes", [1, 2])
def test_score_based_losses_by_hand(processes, monkeypatch):
    # Processes with the same batch: the sums over them double, the means and losses stay.
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: processes)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda value: value.mul_(processes))
    model = build("score")
    anchors = [Boxes(torch.tensor(level)) for level in LEVELS]
    logits = [torch.zeros(1, len(level), model.num_classes) for level in LEVELS]
    deltas = [torch.zeros(1, len(level), 4) for level in LEVELS]
    qualities = [torch.zeros(1, len(level), 1) for level in LEVELS]
    labels = torch.full((6,), model.num_classes)
    labels[[0, 2]] = torch.tensor([1, 3])
    boxes = torch.tensor(OBJECT).expand(6, 4)
    with EventStorage():
        losses = model.losses(anchors, logits, [labels], deltas, [boxes], qualities)
    # Focal loss of probability 1/2: alpha (1/2)^2 log 2, over the two positives.
    cells = 6 * model.num_classes
    focal = 0.25 * math.log(2) * (0.25 * 2 + 0.75 * (cells - 2)) / 2
    # The first positive is its object (GIoU 1); the second's GIoU is its IoU, 0.6 (the union
    # fills the hull), its centerness sqrt(5 / 15).
    weights = 1.0, math.sqrt(1 / 3)
    box = 2.0 * weights[1] * (1 - 0.6) / sum(weights)
    expected = {"loss_cls": focal, "loss_box_reg": box, "loss_centerness": math.log(2)}
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected)


def test_the_score_is_the_root_of_probability_times_centerness():
    model = build("score")
    logits = torch.tensor([0.0, 2.0, -200.0, 200.0]).view(1, 4, 1, 1)
    scores = model._scored(logits, torch.full((1, 1, 1, 1), 1.0)).sigmoid().flatten()
    quality = 1 / (1 + math.exp(-1.0))
    expected = [math.sqrt(quality * p) for p in (0.5, 1 / (1 + math.exp(-2.0)), 0.0, 1.0)]
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_ranking_leaves_out_the_centerness_branch_and_nothing_else():
    ranking = {name: value.shape for name, value in build("brs").state_dict().items()}
    score = {name: value.shape for name, value in build("score").state_dict().items()}
    branch = {"head.quality.weight", "head.quality.bias"}
    assert {name: shape for name, shape in score.items() if name not in branch} == ranking


@pytest.mark.parametrize("loss", ["score", "brs"])
def test_several_anchors_a_location(loss):
    sizes = "[[32, 40], [64, 80], [128, 160]]"
    model = build(loss, "MODEL.ANCHOR_GENERATOR.SIZES", sizes)
    with EventStorage():
        losses = model(random_batch())
    assert all(value > 0 for value in losses.values())
    assert "instances" in model.eval()(random_batch())[0]


def test_the_full_size_pyramid_goes_on_from_p5():
    options = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    cfg = narrow_config("atss_R_50_FPN_1x", "score", *options, "MODEL.FPN.OUT_CHANNELS", "32")
    model = build_model(cfg)
    assert model.backbone.top_block.in_feature == "p5"
    assert len(model.head.cls_subnet) == 4 * 3
    features = [torch.zeros(1, 32, 2**i, 2**i) for i in (4, 3, 2, 1, 0)]
    first_of_levels = [level.tensor[0] for level in model.anchor_generator(features)]
    sides = [(box[2] - box[0]).item() for box in first_of_levels]
    assert sides == [8.0 * stride for stride in (8, 16, 32, 64, 128)]
