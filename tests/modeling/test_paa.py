"""PAA: which candidates are positives, what the model's own losses decide, score voting."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from bucketed_ranking.modeling.paa import low_loss_candidates, vote
from tests.small_detectors import narrow_config, random_batch

NONE = math.inf


def build(loss: str, *options: str):
    torch.manual_seed(0)
    return build_model(narrow_config("paa_tiny", loss, *options)).train()


def positives(*losses: list[float]) -> list[list[bool]]:
    return low_loss_candidates(torch.tensor(losses)).tolist()


def fit_by_hand(losses: list[float]) -> list[bool]:
    """The same, one candidate at a time."""

    def normal(value: float, mean: float, variance: float) -> float:
        return math.exp(-((value - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    def joint(value: float) -> list[float]:
        return [w * normal(value, m, v) for w, m, v in zip(weights, means, variances, strict=True)]

    means, variances, weights = [min(losses), max(losses)], [1.0, 1.0], [0.5, 0.5]
    previous = -math.inf
    for _ in range(100):
        shares = [[part / sum(joint(value)) for part in joint(value)] for value in losses]
        likelihood = sum(math.log(sum(joint(value))) for value in losses) / len(losses)
        totals = [sum(share[c] for share in shares) for c in (0, 1)]
        means = [
            sum(s[c] * value for s, value in zip(shares, losses, strict=True)) / totals[c]
            for c in (0, 1)
        ]
        variances = [
            sum(s[c] * (value - means[c]) ** 2 for s, value in zip(shares, losses, strict=True))
            / totals[c]
            + 1e-6
            for c in (0, 1)
        ]
        weights = [total / len(losses) for total in totals]
        if abs(likelihood - previous) < 1e-3:
            break
        previous = likelihood
    low = [value for value in losses if joint(value)[0] >= joint(value)[1]]
    limit = max(low, key=lambda value: sum(joint(value))) if low else math.inf
    return [value <= limit for value in losses]


def test_positives_are_those_up_to_the_likeliest_of_the_low_losses():
    # The low Gaussian lies around 0.2: 0.1 and 0.2 are at most as far, 0.3 is beyond.
    low, high = [0.3, 0.1, 0.2], [2.1, 2.0, 2.3, 1.9]
    assert positives([*low, *high]) == [[False, True, True, False, False, False, False]]


def test_one_candidate_or_none_needs_no_fit():
    assert positives([NONE, 3.0, NONE], [NONE] * 3) == [[False, True, False], [False] * 3]
    assert low_loss_candidates(torch.zeros(0, 5)).shape == (0, 5)


def test_equal_candidates_are_all_positives():
    assert positives([0.7, 0.7, 0.7, NONE]) == [[True, True, True, False]]


@pytest.mark.parametrize("seed", range(8))
def test_many_objects_at_once_as_one_at_a_time(seed):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(12, 27, generator=generator, dtype=torch.float64) * 3
    losses[:, :9] *= 0.3
    losses[torch.rand(12, 27, generator=generator) < 0.4] = NONE
    for row, found in zip(losses.tolist(), low_loss_candidates(losses).tolist(), strict=True):
        candidates = [value for value in row if value < NONE]
        expected = iter(fit_by_hand(candidates))
        assert found == [value < NONE and next(expected) for value in row]


def scene(model):
    """One object, and the anchors of the model over an image of 128 x 128."""
    anchors = model.anchor_generator([torch.zeros(1, 1, 128 // s, 128 // s) for s in (8, 16, 32)])
    gt = Instances((128, 128))
    gt.gt_boxes = Boxes(torch.tensor([[40.0, 40, 80, 80]]))
    gt.gt_classes = torch.tensor([2])
    sizes = [len(level) for level in anchors]
    logits = [torch.full((1, size, model.num_classes), -3.0) for size in sizes]
    deltas = [torch.zeros(1, size, 4) for size in sizes]
    return anchors, gt, logits, deltas


def test_what_the_model_predicts_decides():
    model = build("brs")
    anchors, gt, logits, deltas = scene(model)

    def labels():
        (found,), _ = model.label_anchors(anchors, [gt], logits, deltas)
        return found

    unsure = labels()
    # A candidate with an IoU of 0.28 that is sure of the class becomes a positive.
    weak = Boxes.cat(anchors).tensor.tolist().index([32.0, 48.0, 64.0, 80.0])
    chosen = (weak, weak + 1)
    for index in chosen:
        logits[0][0, index, 2] = 6.0
    confident = labels()
    assert all(confident[index] == 2 for index in chosen)
    assert (confident != unsure).any()
    # Sure of another class, it is none.
    for index in chosen:
        logits[0][0, index] = torch.tensor([-3.0, 6.0, -3.0, -3.0])
    assert all(labels()[index] == model.num_classes for index in chosen)


def test_each_level_gives_its_best_candidates_and_far_anchors_are_none():
    model = build("brs")
    anchors, gt, logits, deltas = scene(model)
    seen = {}

    def spy(losses):
        seen["finite"] = [level.isfinite().sum().item() for level in losses[0].split([9, 9, 9])]
        return torch.zeros_like(losses, dtype=torch.bool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bucketed_ranking.modeling.paa.low_loss_candidates", spy)
        model.label_anchors(anchors, [gt], logits, deltas)
    # The object's IoU with the 128 pixels of an anchor of the coarse level is 0.098.
    assert seen["finite"] == [9, 9, 0]


def test_an_image_without_objects_beside_one_with():
    model = build("brs")
    anchors, gt, logits, deltas = scene(model)
    twice = [[level.expand(2, -1, -1) for level in value] for value in (logits, deltas)]
    (nothing, something), _ = model.label_anchors(anchors, [gt[:0], gt], *twice)
    assert (nothing == model.num_classes).all()
    assert (something == 2).any()


def test_the_quality_is_the_iou_of_the_prediction():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 10]])
    target = torch.tensor([[0.0, 0, 10, 10], [0.0, 5, 10, 15]])
    found = build("score").qualities(torch.zeros(2, 4), boxes, target)
    torch.testing.assert_close(found, torch.tensor([1.0, 1 / 3]))


def test_voting_averages_the_boxes_around_of_the_same_class():
    candidates = Instances((50, 50))
    candidates.pred_boxes = Boxes(
        torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 8], [0.0, 0, 8, 10], [30.0, 30, 40, 40]])
    )
    candidates.scores = torch.tensor([0.8, 0.4, 0.9, 0.7])
    candidates.pred_classes = torch.tensor([1, 1, 0, 1])
    voted = vote(candidates[[0, 3]], candidates).tensor
    # The second has IoU 0.8 and half the score; the third is of another class.
    weight = 0.4 * math.exp(-(0.2**2) / 0.025)
    bottom = (0.8 * 10 + weight * 8) / (0.8 + weight)
    expected = torch.tensor([[0.0, 0, 10, bottom], [30.0, 30, 40, 40]])
    torch.testing.assert_close(voted, expected)


def test_voting_changes_boxes_only():
    found = []
    for voting in ("True", "False"):
        model = build("score", "MODEL.PAA.SCORE_VOTING", voting).eval()
        with torch.no_grad():
            found.append(model(random_batch())[0]["instances"])
    assert torch.equal(found[0].scores, found[1].scores)
    assert not torch.equal(found[0].pred_boxes.tensor, found[1].pred_boxes.tensor)


def test_ranking_leaves_out_the_iou_branch_and_nothing_else():
    ranking, score = (set(build(loss).state_dict()) for loss in ("brs", "score"))
    assert score - ranking == {"head.quality.weight", "head.quality.bias"}
    assert not ranking - score
