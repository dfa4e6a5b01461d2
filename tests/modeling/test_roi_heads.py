"""The ranking heads: all proposals, sigmoid scores, the right class' box and mask, the stages."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks, pairwise_iou
from detectron2.utils.events import EventStorage

from bucketed_ranking.modeling.ranking import WRITE_PERIOD
from tests.small_detectors import NUM_CLASSES, narrow_config, random_batch


def build(detector: str = "faster_rcnn_tiny", loss: str = "brs", *options: str):
    torch.manual_seed(0)
    return build_model(narrow_config(detector, loss, *options)).train()


def losses_of(model):
    with EventStorage():
        return model(random_batch())


def test_every_proposal_and_ground_truth_box_takes_part():
    heads = build().roi_heads
    targets = random_batch((3, 0))
    proposals = []
    for inputs in targets:
        boxes = torch.tensor([[0.0, 0, 20, 20], [30, 30, 90, 90], [5, 5, 60, 60]])
        given = Instances(inputs["instances"].image_size)
        given.proposal_boxes = Boxes(boxes)
        given.objectness_logits = torch.zeros(3)
        proposals.append(given)
    with EventStorage():
        labelled = heads.label_and_sample_proposals(
            proposals, [inputs["instances"] for inputs in targets]
        )
    assert [len(p) for p in labelled] == [6, 3]
    # The ground truth itself, appended, matches itself.
    assert (labelled[0].gt_classes[3:] == targets[0]["instances"].gt_classes).all()
    assert (labelled[1].gt_classes == NUM_CLASSES).all()


def test_scores_are_independent_sigmoids_without_background():
    predictor = build().roi_heads.box_predictor
    assert predictor.cls_score.out_features == NUM_CLASSES
    logits = torch.tensor([[0.0, 2.0, -1.0, 5.0]])
    proposals = Instances((10, 10), proposal_boxes=Boxes(torch.zeros(1, 4)))
    (scores,) = predictor.predict_probs((logits, None), [proposals])
    torch.testing.assert_close(scores, torch.cat([logits.sigmoid(), torch.zeros(1, 1)], dim=1))


def test_box_loss_uses_the_box_of_the_target_class():
    predictor = build().roi_heads.box_predictor
    proposals = Instances((100, 100))
    proposals.proposal_boxes = Boxes(torch.tensor([[10.0, 10, 30, 30], [50, 50, 70, 70]]))
    proposals.gt_boxes = Boxes(torch.tensor([[20.0, 10, 40, 30], [0, 0, 1, 1]]))
    proposals.gt_classes = torch.tensor([2, NUM_CLASSES])
    deltas = torch.full((2, NUM_CLASSES, 4), 3.0)
    # Half the width to the right, in the coder's units: only class 2 hits the target.
    weight_x = predictor.box2box_transform.weights[0]
    deltas[0, 2] = torch.tensor([0.5 * weight_x, 0.0, 0.0, 0.0])
    logits = torch.zeros(2, NUM_CLASSES)
    with EventStorage(WRITE_PERIOD - 1) as storage:
        losses = predictor.losses((logits, deltas.flatten(1)), [proposals])
    assert losses["loss_box_reg"].abs() < 1e-5
    assert storage.latest()["roi_head/mean_quality"][0] == pytest.approx(1)


def test_class_agnostic_boxes_train():
    cfg = narrow_config(
        "faster_rcnn_tiny", "brs", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"
    )
    with EventStorage():
        losses = build_model(cfg).train()(random_batch())
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("detector", ["faster_rcnn_tiny", "mask_rcnn_tiny"])
def test_ignored_proposals_are_neither_ranked_nor_masked(detector):
    bands = ["MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.3, 0.7]",
             "MODEL.ROI_HEADS.IOU_LABELS", "[0, -1, 1]"]  # fmt: skip
    model = build(detector, "brs", *bands)
    seen = {}
    model.roi_heads.box_predictor.criterion.register_forward_pre_hook(
        lambda module, args: seen.update(logits=args[0], labels=args[1])
    )
    batch = random_batch((1,))
    (x0, y0, x1, y1), shape = batch[0]["instances"].gt_boxes.tensor[0], (96, 128)
    half = torch.stack([x0, y0, (x0 + x1) / 2, y1])
    given = Instances(shape, proposal_boxes=Boxes(half[None]), objectness_logits=torch.zeros(1))
    images = model.preprocess_image(batch)
    with EventStorage():
        features = model.backbone(images.tensor)
        _, losses = model.roi_heads(images, features, [given], [batch[0]["instances"]])
    assert seen["labels"].tolist() == [-1, int(batch[0]["instances"].gt_classes)]
    seen["logits"].retain_grad()
    sum(losses.values()).backward()
    assert not seen["logits"].grad[0].any()
    assert seen["logits"].grad[1].any()


@pytest.mark.parametrize("loss", ["brs", "bap"])
@pytest.mark.parametrize("boxes_balanced", ["True", "False"])
def test_mask_loss_is_dice_and_balanced_whatever_the_boxes_are(loss, boxes_balanced):
    model = build("mask_rcnn_tiny", loss, "MODEL.RANKING.SELF_BALANCE", boxes_balanced)
    with EventStorage(WRITE_PERIOD - 1) as storage:
        losses = model(random_batch())
    # An untrained mask head says 1/2 everywhere: a Dice loss between 0 and 1.
    assert 0 < storage.latest()["mask_head/mask_error"][0] < 1
    ranking = losses["loss_rank"] + losses.get("loss_sort", 0)
    torch.testing.assert_close(losses["loss_mask"], ranking, check_stride=False)


def test_mask_head_takes_the_mask_of_the_target_class_and_weighs_by_score():
    head = build("mask_rcnn_tiny").roi_heads.mask_head
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    covered, half = [0, 0, 10, 0, 10, 10, 0, 10], [0, 0, 5, 0, 5, 10, 0, 10]
    images = [
        Instances((10, 10), proposal_boxes=Boxes(box), gt_classes=torch.tensor([index]),
                  gt_masks=PolygonMasks([[polygon]]), scores=torch.tensor([score]),
                  classification_loss=torch.tensor([0.7]))
        for index, polygon, score in ((1, covered, 0.9), (3, half, 0.3))
    ]  # fmt: skip
    images.insert(1, images[0][:0])
    logits = torch.full((2, NUM_CLASSES, 4, 4), -40.0)
    logits[0, 1], logits[1, 3] = 40.0, 40.0
    head.layers = lambda x: logits
    # The first is perfect; the second predicts 16 cells where 8 are: 1 - 2 * 8 / (16 + 8).
    expected = 0.3 / 1.2 * (1 - 16 / 24)
    with EventStorage(WRITE_PERIOD - 1) as storage:
        balanced = head(None, images)["loss_mask"]
    assert storage.latest()["mask_head/mask_error"][0] == pytest.approx(expected)
    torch.testing.assert_close(balanced, torch.tensor(0.7))


def test_no_more_masks_than_allowed_each_with_the_score_of_its_proposal():
    def number_of_masks(*options: str) -> int:
        model = build("mask_rcnn_tiny", "brs", *options)
        heads, seen = model.roi_heads, {}
        heads.box_predictor.register_forward_hook(lambda m, a, out: seen.update(logits=out[0]))
        losses = heads.box_predictor.losses
        heads.box_predictor.losses = lambda p, proposals: (
            seen.update(proposals=proposals) or losses(p, proposals)
        )
        heads.mask_head.register_forward_pre_hook(lambda m, args: seen.update(masks=args[1]))
        losses_of(model)
        scores = seen["logits"].sigmoid().amax(dim=1)
        boxes = torch.cat([p.proposal_boxes.tensor for p in seen["proposals"]])
        known = dict(zip(map(tuple, boxes.tolist()), scores.tolist(), strict=True))
        for each in seen["masks"]:
            found = map(tuple, each.proposal_boxes.tensor.tolist())
            assert [known[box] for box in found] == pytest.approx(each.scores.tolist())
        return sum(map(len, seen["masks"]))

    assert 5 < number_of_masks() <= 200
    assert number_of_masks("MODEL.RANKING.MAX_MASKS", "5") == 5


STAGES = (0.5, 0.6, 0.7)


@pytest.mark.parametrize("detector", ["cascade_rcnn_tiny", "cascade_mask_rcnn_tiny"])
def test_each_stage_of_a_cascade_ranks_all_its_boxes_at_its_own_threshold(detector):
    model = build(detector)
    heads = model.roi_heads
    for predictor in heads.box_predictor:  # every stage leaves the boxes where they are
        torch.nn.init.zeros_(predictor.bbox_pred.weight)
    batch = random_batch((1, 0))
    targets = [inputs["instances"] for inputs in batch]
    x0, y0, x1, y1 = targets[0].gt_boxes.tensor[0]
    overlaps = torch.tensor([0.45, 0.55, 0.65, 0.75])
    boxes = torch.stack([x0.expand(4), y0.expand(4), x0 + overlaps * (x1 - x0), y1.expand(4)], 1)
    proposals = [
        Instances(t.image_size, proposal_boxes=Boxes(b), objectness_logits=torch.zeros(len(b)))
        for t, b in zip(targets, (boxes, boxes[:2]), strict=True)
    ]
    seen = []
    for predictor in heads.box_predictor:
        losses = predictor.losses
        predictor.losses = lambda p, given, losses=losses: seen.append(given) or losses(p, given)
    images = model.preprocess_image(batch)
    with EventStorage():
        heads(images, model.backbone(images.tensor), proposals, targets)
    assert len({id(p.criterion) for p in heads.box_predictor}) == 3
    for stage, (threshold, (first, second)) in enumerate(zip(STAGES, seen, strict=True)):
        # The ground truth joins in every stage; those of earlier stages stay.
        assert (len(first), len(second)) == (4 + 1 + stage, 2)
        best = pairwise_iou(targets[0].gt_boxes, first.proposal_boxes).amax(dim=0)
        assert (best[:4].round(decimals=2) == overlaps).all()
        assert ((first.gt_classes < NUM_CLASSES) == (best >= threshold)).all()
        assert (second.gt_classes == NUM_CLASSES).all()


def test_the_ground_truth_is_in_the_box_loss_of_the_first_stage_alone():
    model = build("cascade_rcnn_tiny")
    batch = random_batch((2, 1))
    targets = [inputs["instances"] for inputs in batch]
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    # Nothing is proposed, and no stage makes anything of the ground truth: it is all that there is.
    model.roi_heads._create_proposals_from_boxes = lambda boxes, sizes: [
        Instances(size, proposal_boxes=Boxes(torch.empty(0, 4))) for size in sizes
    ]
    nothing = [
        Instances(
            t.image_size, proposal_boxes=Boxes(torch.empty(0, 4)), objectness_logits=torch.empty(0)
        )
        for t in targets
    ]
    with EventStorage():
        _, losses = model.roi_heads(images, features, nothing, targets)
    assert losses["loss_box_reg_stage0"] > 0
    assert losses["loss_box_reg_stage1"] == losses["loss_box_reg_stage2"] == 0
    assert all(losses[f"loss_rank_stage{stage}"] > 0 for stage in range(3))


def test_a_cascade_averages_sigmoid_scores_and_takes_the_last_boxes():
    low = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "1.0"]
    model = build("cascade_rcnn_tiny", "brs", *low).eval()
    for predictor, logit in zip(model.roi_heads.box_predictor, (-1.0, 0.0, 2.0), strict=True):
        torch.nn.init.zeros_(predictor.cls_score.weight)
        torch.nn.init.constant_(predictor.cls_score.bias, logit)
    with torch.no_grad():
        found = model(random_batch((1,)))[0]["instances"]
    expected = torch.tensor([-1.0, 0.0, 2.0]).sigmoid().mean()
    torch.testing.assert_close(found.scores, expected.expand(len(found)))
