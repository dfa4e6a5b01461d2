"""Where tokens and boxes are, of images that are padded to the largest."""

import math

import pytest
import torch

from bucketed_ranking.modeling.codetr import positions
from bucketed_ranking.modeling.codetr.positions import levels_of

# One image fills the batch's 32 x 64 pixels, the other 16 x 48 of them; strides 8 and 16.
SIZES, PADDED = [(32, 64), (16, 48)], (32, 64)


def levels(sizes=SIZES, padded=PADDED):
    shapes = [(padded[0] // stride, padded[1] // stride) for stride in (8, 16)]
    return levels_of([torch.zeros(len(sizes), 4, *shape) for shape in shapes], sizes, padded)


def test_padding_and_valid_ratios():
    found = levels()
    assert found.shapes == [(4, 8), (2, 4)]
    full, part = found.split(found.padding)[0].unflatten(1, (4, 8))
    assert not full.any()
    assert (~part).nonzero().amax(dim=0).tolist() == [1, 5], "2 rows of 6 tokens are the image"
    assert int((~part).sum()) == 12
    assert found.valid_ratios[0].tolist() == [[1, 1], [1, 1]]
    assert found.valid_ratios[1].tolist() == [[0.75, 0.5], [0.75, 0.5]]


def test_sizes_that_no_stride_divides():
    features = [torch.zeros(2, 4, 3, 4), torch.zeros(2, 4, 2, 2)]
    found = levels_of(features, [(21, 29), (9, 16)], (21, 29))
    assert found.valid_ratios[0].tolist() == [[1, 1], [1, 1]]
    # Token (1, 2) starts at pixel 7, 14.5: of the image; (2, .) at pixel 14 is not.
    assert (found.valid_ratios[1, 0] * torch.tensor([4, 3])).round().tolist() == [3, 2]


def test_centres_are_relative_to_the_image_and_to_each_map():
    found = levels()
    centers = positions.token_centers(found)
    # The second token of the second row of the first level: 12, 12 in pixels.
    torch.testing.assert_close(
        centers[:, 9], torch.tensor([[12 / 64, 12 / 32], [12 / 48, 12 / 16]])
    )
    # The first of the second level: 8, 8.
    torch.testing.assert_close(centers[:, 32], torch.tensor([[8 / 64, 8 / 32], [8 / 48, 8 / 16]]))
    on_maps = positions.on_levels(centers, found)
    expected = torch.tensor([12 / 64, 12 / 32]).expand(2, 2, 2)
    torch.testing.assert_close(on_maps[:, 9], expected, msg="the same place of the padded maps")


def test_boxes_are_scaled_to_the_maps_too():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4]], [[0.5, 0.5, 0.2, 0.4]]])
    found = positions.on_levels(boxes, levels())
    torch.testing.assert_close(found[0, 0, 1], boxes[0, 0])
    torch.testing.assert_close(found[1, 0, 0], torch.tensor([0.375, 0.25, 0.15, 0.2]))


def test_sines_of_a_box_by_hand():
    found = positions.sines_of_boxes(torch.tensor([0.25, 0.0, 0.5, 1.0]), 8)
    # 4 numbers for each coordinate: sine and cosine of the angle, and of a hundredth of it.
    angle = math.pi / 2
    first = [math.sin(angle), math.cos(angle), math.sin(angle / 100), math.cos(angle / 100)]
    torch.testing.assert_close(found[:4], torch.tensor(first))
    torch.testing.assert_close(found[4:8], torch.tensor([0.0, 1, 0, 1]))
    assert found.shape == (16,)


def test_sines_of_tokens_are_those_of_an_image_alone():
    together = positions.sines_of_tokens(levels(), 16)
    alone = positions.sines_of_tokens(levels([(16, 48)], (16, 48)), 16)
    for level, own, shape, own_shape in zip(
        together, alone, [(4, 8), (2, 4)], [(2, 6), (1, 3)], strict=True
    ):
        part = level[1].unflatten(0, shape)[: own_shape[0], : own_shape[1]]
        torch.testing.assert_close(part, own[0].unflatten(0, own_shape))
    # y first: half a token of two, in angles, then x: half of six.
    first = together[0][1, 0]
    torch.testing.assert_close(first[0], torch.tensor(math.sin(2 * math.pi * 0.25)))
    torch.testing.assert_close(first[8], torch.tensor(math.sin(2 * math.pi / 12)))


def test_token_boxes_and_which_of_them_count():
    logits, usable = positions.token_boxes(levels())
    boxes = logits.sigmoid()
    torch.testing.assert_close(boxes[1, 9], torch.tensor([12 / 48, 12 / 16, 0.05, 0.05]))
    torch.testing.assert_close(boxes[0, 32], torch.tensor([8 / 64, 8 / 32, 0.1, 0.1]))
    assert torch.equal(usable, ~levels().padding), "no token is close to the border here"
    # 1000 pixels, stride 8: the first and last centres are within 0.01 of the border.
    wide = levels_of([torch.zeros(1, 4, 4, 125)], [(32, 1000)], (32, 1000))
    _, usable = positions.token_boxes(wide)
    columns = usable.view(4, 125)
    assert columns[:, 1:-1].all()
    assert not columns[:, [0, -1]].any()


@pytest.mark.parametrize("value", [0.0, 1e-3, 0.5, 1.0, -0.2, 1.3])
def test_inverse_sigmoid_is_bounded(value):
    found = positions.inverse_sigmoid(torch.tensor(value))
    assert found.isfinite()
    torch.testing.assert_close(
        found.sigmoid(), torch.tensor(float(min(max(value, 0), 1))), atol=2e-5, rtol=0
    )
