"""Matching in blocks finds what matching all at once does, and holds no large matrix."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage

from bucketed_ranking.modeling import matching
from tests.small_detectors import DETECTORS, narrow_config, random_batch


def random_boxes(count: int, seed: int) -> Boxes:
    """Corners on a grid of whole pixels, so that equal overlaps are common."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 30, (count, 2), generator=generator)
    sizes = torch.randint(1, 12, (count, 2), generator=generator)
    return Boxes(torch.cat([corners, corners + sizes], dim=1).float())


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("block", [1, 70, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_matches_in_blocks_are_those_of_the_matrix(monkeypatch, low_quality, block, seed):
    matcher = Matcher([0.3, 0.6], [0, -1, 1], allow_low_quality_matches=low_quality)
    objects, boxes = random_boxes(9, seed), random_boxes(400, seed + 100)
    expected = matcher(pairwise_iou(objects, boxes))
    monkeypatch.setattr(matching, "BLOCK", block)
    ious = matching.bounded_pairwise_iou(objects, boxes)
    assert isinstance(ious, matching.BlockwiseIoU)
    matches, labels = matcher(ious)
    assert torch.equal(labels, expected[1])
    assert torch.equal(matches, expected[0])


@pytest.mark.parametrize("loss", ["score", "brs"])
@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_trains_alike_and_computes_no_more_than_a_block(monkeypatch, name, loss):
    torch.manual_seed(0)
    model = build_model(narrow_config(name, loss))
    batch = random_batch((12, 0))

    def losses() -> dict[str, float]:
        torch.manual_seed(1)
        with EventStorage():  # a copy, for RetinaNet keeps an average of its positives
            return {key: value.item() for key, value in copy.deepcopy(model)(batch).items()}

    expected, sizes = losses(), []

    def recorded(objects: Boxes, boxes: Boxes) -> torch.Tensor:
        sizes.append(len(objects) * len(boxes))
        return pairwise_iou(objects, boxes)

    monkeypatch.setattr(matching, "BLOCK", 512)
    monkeypatch.setattr(matching, "pairwise_iou", recorded)
    monkeypatch.setattr("bucketed_ranking.modeling.atss.pairwise_iou", recorded)
    assert losses() == expected
    assert len(sizes) > 5
    assert max(sizes) <= 512
