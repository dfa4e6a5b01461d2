"""A detector as one function of a picture: the parts that are not the detector's own."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.layers import paste_masks_in_image

from bucketed_ranking.engine import deployment
from bucketed_ranking.engine.calibration import ScoreMap

SHAPES = [(48, 64), (64, 48), (300, 77), (31, 222), (1, 7), (64, 64), (500, 100), (200, 199)]


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_pictures_are_resized_to_the_last_bit_as_by_prediction(height, width):
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for shortest, longest in ((64, 128), (20, 30), (90, 700)):
        transform = T.ResizeShortestEdge(shortest, longest).get_transform(picture)
        tensor = torch.from_numpy(picture)
        size = deployment.resized_shape(tensor, shortest, longest)
        resized = deployment.resize_bilinear(tensor, size[0], size[1]).numpy()
        np.testing.assert_array_equal(resized, transform.apply_image(picture))


def test_sizes_are_those_of_prediction():
    rng = np.random.default_rng(0)
    halves = [(1704, 870, 720, 1278), (1000, 2000, 800, 1333)]  # rounded up at exactly a half
    for height, width, shortest, longest in [*halves, *rng.integers(1, 3000, (500, 4)).tolist()]:
        size = deployment.resized_shape(torch.empty(height, width, 0), shortest, longest)
        expected = T.ResizeShortestEdge.get_output_shape(height, width, shortest, longest)
        assert tuple(size.tolist()) == expected


def test_a_score_map_of_knots_alone_is_the_same_map():
    rng = np.random.default_rng(0)
    scores, probabilities = (tuple(np.sort(rng.random(50)).tolist()) for _ in range(2))
    score_map = ScoreMap("isotonic", scores, probabilities)
    knots, values = map(torch.from_numpy, score_map.as_knots())
    x = np.unique(np.float32([0, 1, *rng.random(2000), *10 ** rng.uniform(-37, 0, 2000)]))
    x = np.unique(np.concatenate([x, np.nextafter(x, np.float32(1))]))
    mapped = deployment.interpolate(torch.from_numpy(x).double(), knots, values).numpy()
    np.testing.assert_allclose(mapped, score_map(x), rtol=1e-12)
    assert (np.diff(mapped) > 0).all()


def test_masks_are_pasted_as_by_detectron2():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(6, 28, 28, generator=generator)
    corners = 30 * torch.rand(6, 2, generator=generator)
    sizes = 1 + 30 * torch.rand(6, 2, generator=generator)
    boxes = torch.cat([corners, corners + sizes], dim=1)
    expected = paste_masks_in_image(masks, boxes, (50, 70))
    pasted = deployment.paste_masks(masks, boxes, 50, 70)
    assert 0 < expected.float().mean() < 1
    assert (pasted != expected).float().mean() < 1e-4
    assert deployment.paste_masks(masks[:0], boxes[:0], 50, 70).shape == (0, 50, 70)
