"""Any logits in any layout: every algorithm gives what the loop gives in float64."""

import contextlib
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bucketed_ranking.losses import LOSS_NAMES, RankingLoss

INFINITY = float("inf")
CASES = settings.default.max_examples // 3
# Relative to the largest value; gradients are rounded to the type of the logits.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}
ORDINARY = st.integers(-48, 48).map(lambda steps: steps / 8)
EXTREME = st.sampled_from([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, 6e4, -6e4])


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values under other strides."""
    if layout == "transposed":
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        return torch.stack([values, torch.full_like(values, 3.0)], dim=-1)[..., 0]
    return values


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    shape = draw(st.lists(st.integers(0, 6), min_size=1, max_size=3))
    count = torch.Size(shape).numel()
    negatives = st.one_of(ORDINARY, ORDINARY, EXTREME, st.sampled_from([INFINITY, -INFINITY]))
    qualities = st.sampled_from([1 / 1024, 0.25, 0.5, 0.5, 0.75, 1.0])
    targets = [draw(st.one_of(st.just(0.0), st.just(0.0), st.just(-1.0), qualities))
               for _ in range(count)]  # fmt: skip
    values = [draw(st.one_of(ORDINARY, EXTREME) if t > 0 else negatives) for t in targets]
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    name = draw(st.sampled_from(sorted(LOSS_NAMES)))
    chunked = LOSS_NAMES[name][1] == "exact" and draw(st.booleans())
    return {
        "name": name,
        # Buckets act through their means: they equal the definition for a step alone.
        "delta": 0.0
        if LOSS_NAMES[name][1] == "bucketed"
        else draw(st.sampled_from([0.0, 0.125, 0.5, 1.0, 7.0])),
        "chunk_size": draw(st.integers(1, 5)) if chunked else None,
        "logits": torch.tensor(values, dtype=torch.float64).reshape(shape).to(dtype),
        "targets": torch.tensor(targets, dtype=torch.float64).reshape(shape),
        "layout": draw(st.sampled_from(["contiguous", "transposed", "sliced"])),
    }


def losses_and_gradients(loss: RankingLoss, logits: Tensor, targets: Tensor, layout: str):
    leaf = logits.clone().requires_grad_()
    boxes = torch.linspace(0, 2, int((targets > 0).sum()), dtype=targets.dtype).requires_grad_()
    found = loss(laid_out(leaf, layout), laid_out(targets, layout), boxes)
    sum(weight * value for weight, value in enumerate(found.values(), 1)).backward()
    box_grad = torch.zeros_like(boxes) if boxes.grad is None else boxes.grad
    return torch.stack(list(found.values())).detach(), leaf.grad, box_grad


@settings(max_examples=CASES)
@given(cases())
def test_losses_equal_the_loop_in_float64_whatever_the_logits(case: dict[str, Any]) -> None:
    loss = RankingLoss(case["name"], delta=case["delta"], chunk_size=case["chunk_size"])
    objective = LOSS_NAMES[case["name"]][0]
    how = {"interpolated": loss.interpolated} if objective == "ap" else {}
    loop = RankingLoss(objective, delta=case["delta"], **how)
    logits, targets = case["logits"], case["targets"]
    found = losses_and_gradients(loss, logits, targets, case["layout"])
    expected = losses_and_gradients(loop, logits.double(), targets, "contiguous")
    tolerance = TOLERANCES[logits.dtype]
    for given_, reference in zip(found, expected, strict=True):
        assert reference.isfinite().all()
        scale = max(1.0, float(reference.abs().max())) if reference.numel() else 1.0
        torch.testing.assert_close(given_.double(), reference, rtol=0, atol=tolerance * scale)


@settings(max_examples=CASES)
@given(cases(), st.sampled_from([float("nan"), INFINITY, -INFINITY]), st.integers(0))
def test_what_cannot_be_ranked_is_nan_and_nothing_else(
    case: dict[str, Any], value: float, place: int
) -> None:
    positives = (case["targets"].flatten() > 0).nonzero().flatten()
    if not len(positives):
        return
    logits = case["logits"].clone()
    logits.view(-1)[positives[place % len(positives)]] = value
    loss = RankingLoss(case["name"], delta=case["delta"], chunk_size=case["chunk_size"])
    losses, grad, _ = losses_and_gradients(loss, logits, case["targets"], case["layout"])
    assert losses.isnan().all()
    assert grad.shape == logits.shape


@settings(max_examples=CASES)
@given(st.sampled_from(sorted(LOSS_NAMES)), st.data())
def test_wrong_arguments_raise_a_value_error_or_none(name: str, data: Any) -> None:
    dtypes = [torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64]
    shapes = st.lists(st.integers(0, 3), max_size=3)
    logits = torch.zeros(data.draw(shapes), dtype=data.draw(st.sampled_from(dtypes)))
    targets = torch.full(
        data.draw(shapes | st.just(list(logits.shape))),
        data.draw(st.sampled_from([-1, 0, 1, 2])),
    ).to(data.draw(st.sampled_from(dtypes)))
    boxes = torch.zeros(data.draw(shapes), dtype=data.draw(st.sampled_from(dtypes)))
    boxes = data.draw(st.sampled_from([None, boxes]))
    with contextlib.suppress(ValueError):
        found = RankingLoss(name)(logits, targets, boxes)
        assert all(loss.isfinite() for loss in found.values())
