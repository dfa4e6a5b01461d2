"""RankingRetinaNet's own: what it asks the criterion."""

import torch
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage

from bucketed_ranking.modeling.ranking import WRITE_PERIOD
from tests.small_detectors import narrow_config, random_batch


def test_score_is_detectron2s_own_retinanet():
    assert type(build_model(narrow_config("retinanet_tiny", "score"))).__name__ == "RetinaNet"


def test_parameters_are_those_of_retinanet():
    ranking = build_model(narrow_config("retinanet_tiny", "brs")).state_dict()
    score = build_model(narrow_config("retinanet_tiny", "score")).state_dict()
    assert {k: v.shape for k, v in ranking.items()} == {k: v.shape for k, v in score.items()}


def test_dense_head_hands_each_positive_its_own_anchor_delta_and_target():
    # Two levels, two images: the only positive is anchor 2 (second level) of the second image.
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])),
               Boxes(torch.tensor([[0.0, 20, 20, 40]]))]  # fmt: skip
    logits = [torch.zeros(2, 2, 1), torch.zeros(2, 1, 1)]
    deltas = [torch.zeros(2, 2, 4), torch.zeros(2, 1, 4)]
    deltas[1][1, 0] = torch.tensor([0.5, 0.0, 0.0, 0.0])
    labels = torch.tensor([[1, 1, 1], [1, 1, 0]])
    targets = [torch.zeros(3, 4), torch.zeros(3, 4)]
    targets[1][2] = torch.tensor([10.0, 20.0, 30.0, 40.0])
    head = build_model(narrow_config("retinanet_tiny", "brs"))
    head.box2box_transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    with EventStorage(WRITE_PERIOD - 1) as storage:
        losses = head.dense_losses("head", anchors, logits, labels, deltas, targets)
    assert storage.latest()["head/num_positives"][0] == 1
    # The anchor moved by half its width is the target: IoU 1, box loss 0.
    assert storage.latest()["head/mean_quality"][0] == 1
    assert losses["loss_box_reg"] == 0


def test_anchors_between_the_thresholds_are_ignored():
    model = build_model(narrow_config("retinanet_tiny", "brs")).train()
    batch = random_batch((2, 2))
    seen = {}
    handle = model.criterion.register_forward_pre_hook(
        lambda module, args: seen.update(logits=args[0], labels=args[1])
    )
    with EventStorage():
        model(batch)
    handle.remove()
    image_size = model.preprocess_image(batch).tensor.shape[-2:]
    strides = [8, 16, 32]
    features = [torch.zeros(1, 1, *(-(-side // s) for side in image_size)) for s in strides]
    anchors = Boxes.cat(model.anchor_generator(features))
    labels = seen["labels"].view(2, -1)
    for image_labels, inputs in zip(labels, batch, strict=True):
        best = pairwise_iou(inputs["instances"].gt_boxes, anchors).amax(dim=0)
        assert (image_labels[best >= 0.5] < model.num_classes).all()
        between = (best > 0.4) & (best < 0.5)
        # Low-quality matches may turn the best anchor of an object into a positive.
        assert ((image_labels[between] == -1) | (image_labels[between] < model.num_classes)).all()
        assert (image_labels[best < 0.3] >= 0).all()
    assert (labels == -1).any()
