"""Deformable attention against loops over its points."""

import itertools
import math

import pytest
import torch

from bucketed_ranking.modeling.codetr.deformable_attention import (
    DeformableAttention,
    sample_by_deformops,
    sample_by_torch,
    sample_levels,
)

SHAPES = [(3, 5), (2, 2)]


def bilinear(image: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """The value of an image [H, W, D] at x, y in pixels, whose centres are at 0.5; 0 around it."""
    height, width, channels = image.shape
    x, y = x - 0.5, y - 0.5
    value = torch.zeros(channels, dtype=image.dtype)
    for column, row in itertools.product((math.floor(x), math.floor(x) + 1), (0, 1)):
        row += math.floor(y)
        if 0 <= column < width and 0 <= row < height:
            value += (1 - abs(x - column)) * (1 - abs(y - row)) * image[row, column]
    return value


def test_samples_are_bilinear_and_zero_outside():
    torch.manual_seed(0)
    batch, heads, channels, queries, points = 2, 3, 4, 5, 2
    tokens = sum(height * width for height, width in SHAPES)
    values = torch.randn(batch, tokens, heads, channels, dtype=torch.float64)
    spread = batch, queries, heads, len(SHAPES), points
    locations = torch.rand(*spread, 2, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(spread, dtype=torch.float64)
    found = sample_levels(values, SHAPES, locations, weights)
    expected = torch.zeros(batch, queries, heads, channels, dtype=torch.float64)
    for n, q, m, p in itertools.product(*map(range, (batch, queries, heads, points))):
        start = 0
        for level, (height, width) in enumerate(SHAPES):
            image = values[n, start : start + height * width, m].view(height, width, channels)
            x, y = (locations[n, q, m, level, p] * torch.tensor([width, height])).tolist()
            expected[n, q, m] += weights[n, q, m, level, p] * bilinear(image, x, y)
            start += height * width
    torch.testing.assert_close(found, expected.flatten(2))


def test_a_gradient_reaches_values_locations_and_weights():
    torch.manual_seed(0)
    values = torch.randn(1, 19, 2, 2, dtype=torch.float64, requires_grad=True)
    locations = torch.rand(1, 2, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(1, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda *given: sample_levels(given[0], SHAPES, *given[1:]), (values, locations, weights)
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_deformops_samples_the_same(device):
    pytest.importorskip("deformops", reason="deformops is not installed (Python 3.12 or newer)")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    torch.manual_seed(0)
    spread = 2, 5, 3, len(SHAPES), 4
    given = torch.randn(2, 19, 3, 16), torch.rand(*spread, 2) * 1.6 - 0.3, torch.rand(spread)
    upstream = torch.randn(2, 5, 48, device=device)
    results = []
    for sample in (sample_by_torch, sample_by_deformops, sample_levels):
        values, locations, weights = (each.to(device).requires_grad_() for each in given)
        found = sample(values, SHAPES, locations, weights)
        gradients = torch.autograd.grad(found, (values, locations, weights), upstream)
        results.append((found, *gradients))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("box", [False, True])
def test_offsets_are_pixels_around_a_point_and_parts_of_half_a_box(box):
    """One head and point, and identical projections: the output is the sample itself."""
    torch.manual_seed(0)
    attention = DeformableAttention(dim=2, levels=1, heads=1, points=1)
    for projection in (attention.value_proj, attention.output_proj):
        torch.nn.init.eye_(projection.weight)
    image = torch.randn(4, 8, 2)
    # One pixel to the right; or half of a box that is 2 pixels wide.
    torch.testing.assert_close(attention.sampling_offsets.bias, torch.tensor([1.0, 0.0]))
    place = [2.5 / 8, 1.5 / 4]
    reference = torch.tensor([*place, 2 / 8, 1.0] if box else place).view(1, 1, 1, -1)
    padding = torch.zeros(1, 32, dtype=torch.bool)
    found = attention(torch.randn(1, 1, 2), reference, image.view(1, 32, 2), padding, [(4, 8)])
    torch.testing.assert_close(found.flatten(), image[1, 3])


def test_padding_is_zero_and_has_no_influence():
    torch.manual_seed(0)
    attention = DeformableAttention(dim=8, levels=2, heads=2, points=3)
    queries, references = torch.randn(1, 4, 8), torch.rand(1, 4, 2, 2)
    tokens = torch.randn(1, 19, 8)
    padding = torch.rand(1, 19) < 0.4
    other = torch.where(padding.unsqueeze(2), torch.randn(1, 19, 8) * 100, tokens)
    pair = [attention(queries, references, t, padding, SHAPES) for t in (tokens, other)]
    torch.testing.assert_close(*pair)
