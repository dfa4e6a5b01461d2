"""RankingROIHeads and its predictor: all proposals, sigmoid scores, the box of the right class."""

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from tests.small_detectors import NUM_CLASSES, narrow_config, random_batch


def build():
    torch.manual_seed(0)
    return build_model(narrow_config("faster_rcnn_tiny", "brs")).train()


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
    losses = predictor.losses((logits, deltas.flatten(1)), [proposals])
    assert losses["loss_box_reg"].abs() < 1e-5
    torch.testing.assert_close(predictor.criterion.statistics["mean_quality"], torch.tensor(1.0))


def test_class_agnostic_boxes_train():
    cfg = narrow_config(
        "faster_rcnn_tiny", "brs", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"
    )
    with EventStorage():
        losses = build_model(cfg).train()(random_batch())
    assert all(value.isfinite() for value in losses.values())
