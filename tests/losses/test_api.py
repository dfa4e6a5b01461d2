"""The public functions and ``RankingLoss``: what holds for every objective and algorithm."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bucketed_ranking.losses import LOSS_NAMES, RankingLoss, alrp_loss, ap_loss, rank_sort_loss

COMBINATIONS = sorted(set(LOSS_NAMES.values()))
EVERY_LOSS = pytest.mark.parametrize(("objective", "algorithm"), COMBINATIONS)
EVERY_NAME = pytest.mark.parametrize("name", LOSS_NAMES)
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def _indexed(loss: RankingLoss, logits: Tensor, case: Any, **options: Any) -> dict[str, Tensor]:
    positives = case.is_positive.nonzero().squeeze(1)
    qualities = case.targets[positives]
    boxes = case.box_losses if loss.objective == "alrp" else None
    return loss.forward_indexed(logits, positives, qualities, box_losses=boxes, **options)


@EVERY_LOSS
def test_ranking_gradients_sum_to_zero(
    make_case: Callable, evaluate: Callable, objective: str, algorithm: str
) -> None:
    for kind in ("normal", "trained", "quarters"):
        result = evaluate(make_case(50, 400, kind, ignored=9), objective, algorithm)
        assert result.grad.abs().max() > 1e-3
        assert abs(result.grad.sum()) < 1e-13


@EVERY_LOSS
def test_positives_rise_and_negatives_fall(
    make_case: Callable, evaluate: Callable, objective: str, algorithm: str
) -> None:
    case = make_case(50, 400, quality="ones")
    grad = evaluate(case, objective, algorithm).grad
    assert (grad[case.is_positive] <= 0).all()
    assert (grad[~case.is_positive] >= 0).all()


@EVERY_LOSS
def test_ignored_logits_take_no_part(
    make_case: Callable, evaluate: Callable, objective: str, algorithm: str
) -> None:
    case = make_case(20, 100, ignored=30)
    ignored = case.targets < 0
    case.logits[ignored] = torch.nan
    found = evaluate(case, objective, algorithm)
    assert not found.grad[ignored].any()
    kept = make_case(0, 0)
    kept.logits, kept.targets = case.logits[~ignored], case.targets[~ignored]
    kept.box_losses = case.box_losses
    expected = evaluate(kept, objective, algorithm)
    assert torch.equal(found.losses, expected.losses)
    assert torch.equal(found.grad[~ignored], expected.grad)


@EVERY_LOSS
@pytest.mark.parametrize("negatives", [0, 5])
def test_no_positives_give_zero_on_a_connected_graph(
    make_case: Callable, evaluate: Callable, objective: str, algorithm: str, negatives: int
) -> None:
    result = evaluate(make_case(0, negatives, ignored=2), objective, algorithm)
    assert not result.losses.any()
    assert result.grad.shape == (negatives + 2,)
    assert not result.grad.any()


@EVERY_NAME
@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)])
def test_no_logits_at_all_give_zero(name: str, shape: tuple[int, ...]) -> None:
    logits, loss = torch.zeros(shape, requires_grad=True), RankingLoss(name)
    boxes = torch.zeros(0) if loss.objective == "alrp" else None
    losses = loss(logits, torch.zeros(shape), boxes)
    sum(losses.values()).backward()
    assert not torch.stack(list(losses.values())).any()
    assert logits.grad.shape == shape
    none = torch.zeros(0, dtype=torch.int64)
    rows = torch.zeros(shape[0], dtype=torch.bool)
    assert loss.forward_indexed(logits, none, torch.zeros(0), rows, boxes) == losses


@pytest.mark.parametrize("algorithm", ["loop", "exact"])
def test_box_losses_of_another_type_keep_it(make_case: Callable, algorithm: str) -> None:
    case = make_case(20, 100, dtype=torch.float32)
    for dtype in (torch.float16, torch.float64):
        boxes = case.box_losses.to(dtype).requires_grad_()
        alrp_loss(case.logits, case.targets, boxes, algorithm=algorithm)[1].backward()
        assert boxes.grad.dtype == dtype
        assert boxes.grad.any()


@EVERY_LOSS
def test_no_negatives_give_no_ranking_error(
    make_case: Callable, evaluate: Callable, objective: str, algorithm: str
) -> None:
    result = evaluate(make_case(5, 0), objective, algorithm)
    assert result.losses[0] == 0
    if objective != "rs":
        assert not result.grad.any()


@EVERY_LOSS
def test_one_of_each(
    evaluate: Callable, make_case: Callable, objective: str, algorithm: str
) -> None:
    # Equal logits. At delta 0 the rank is 2 and the error 1/2; otherwise NFP is 1/2 and the rank
    # 3/2, but 1 for RS, which counts half of the positive itself.
    case = make_case(1, 1, "constant")
    assert evaluate(case, objective, algorithm, delta=0).losses[0] == 0.5
    result = evaluate(case, objective, algorithm, delta=1.0)
    error = 1 / 2 if objective == "rs" else 1 / 3
    torch.testing.assert_close(result.losses[0].item(), error)
    torch.testing.assert_close(result.grad[case.is_positive].item(), -error)
    torch.testing.assert_close(result.grad[~case.is_positive].item(), error)


@EVERY_LOSS
def test_perfect_ranking_gives_zero(
    make_case: Callable, evaluate: Callable, objective: str, algorithm: str
) -> None:
    result = evaluate(make_case(20, 100, "solved", "ones"), objective, algorithm)
    assert result.losses[0] == 0
    assert not result.grad.any()


@EVERY_LOSS
def test_gradient_follows_each_upstream_gradient(
    make_case: Callable, objective: str, algorithm: str
) -> None:
    case = make_case(20, 100)
    logits, boxes = case.logits.requires_grad_(), case.box_losses.requires_grad_()
    if objective == "ap":
        losses = (ap_loss(logits, case.targets, algorithm=algorithm),)
    elif objective == "rs":
        losses = rank_sort_loss(logits, case.targets, algorithm=algorithm)
    else:
        losses = alrp_loss(logits, case.targets, boxes, algorithm=algorithm)

    def grads(*weights: float) -> tuple[Tensor, ...]:
        total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        found = torch.autograd.grad(total, (logits, boxes), retain_graph=True, allow_unused=True)
        return tuple(torch.zeros(()) if grad is None else grad for grad in found)

    if len(losses) == 1:
        torch.testing.assert_close(grads(-3.0)[0], -3 * grads(1.0)[0])
        return
    for found, first, second in zip(
        grads(2.0, -5.0), grads(1.0, 0.0), grads(0.0, 1.0), strict=True
    ):
        torch.testing.assert_close(found, 2 * first - 5 * second)
    assert grads(1.0, 0.0)[0].any()
    assert grads(0.0, 1.0)[objective == "alrp"].any()


@pytest.mark.parametrize("algorithm", ["loop", "exact"])
def test_alrp_parts_reach_their_own_inputs_only(
    make_case: Callable, relative_error: Callable, algorithm: str
) -> None:
    case = make_case(20, 100)
    logits, boxes = case.logits.requires_grad_(), case.box_losses.requires_grad_()
    classification, localisation = alrp_loss(logits, case.targets, boxes, algorithm=algorithm)
    grad, none = torch.autograd.grad(classification, (logits, boxes), retain_graph=True)
    assert grad.any()
    assert not none.any()
    none, grad = torch.autograd.grad(localisation, (logits, boxes))
    assert not none.any()
    # The public code's form: box losses summed in the order of the scores, over smoothed ranks that
    # are held fixed; the gradient is that of autograd.
    positives = logits.detach()[case.is_positive]
    negatives = logits.detach()[~case.is_positive]
    smoothed = ((positives[:, None] - positives) / 2 + 0.5).clamp(0, 1).fill_diagonal_(1)
    rank = smoothed.sum(0) + ((negatives[:, None] - positives) / 2 + 0.5).clamp(0, 1).sum(0)
    order = positives.argsort(descending=True)
    mean = (boxes[order].cumsum(0) / rank[order]).mean()
    torch.testing.assert_close(mean, localisation)
    assert relative_error(grad, torch.autograd.grad(mean, boxes)[0]) < 1e-13


@EVERY_LOSS
def test_strides_and_shape_do_not_matter(
    make_case: Callable, evaluate: Callable, objective: str, algorithm: str
) -> None:
    case = make_case(20, 100)
    expected = evaluate(case, objective, algorithm)
    shaped = make_case(0, 0)
    shaped.box_losses = case.box_losses
    shaped.logits = case.logits.view(4, 30).T.contiguous().T
    shaped.targets = case.targets.view(4, 30)
    assert not shaped.logits.is_contiguous()
    found = evaluate(shaped, objective, algorithm)
    assert torch.equal(found.losses, expected.losses)
    assert torch.equal(found.grad, expected.grad.view(4, 30))


@EVERY_LOSS
@HALVES
def test_half_precision_is_ranked_in_float32(
    make_case: Callable, evaluate: Callable, objective: str, algorithm: str, dtype: torch.dtype
) -> None:
    half = make_case(20, 100).to(dtype)
    found = evaluate(half, objective, algorithm)
    expected = evaluate(half.to(torch.float32), objective, algorithm)
    assert found.grad.dtype == dtype
    assert found.losses.dtype == torch.float32
    assert torch.equal(found.losses, expected.losses)
    assert torch.equal(found.grad, expected.grad.to(dtype))


@EVERY_NAME
@HALVES
def test_autocast_changes_nothing(make_case: Callable, name: str, dtype: torch.dtype) -> None:
    case, loss = make_case(40, 300, dtype=torch.float32), RankingLoss(name)
    weight = torch.ones(1, 1, requires_grad=True)

    def accumulated(autocast: bool) -> tuple[Tensor, Tensor]:
        weight.grad = None
        for part in (case.logits, case.logits.flip(0)):
            with torch.autocast("cpu", dtype, enabled=autocast):
                logits = (part[:, None].to(dtype) @ weight.to(dtype)).squeeze(1)
                logits = logits if autocast else logits.float()
                total = sum(_indexed(loss, logits, case).values())
            total.backward()
        return total.detach(), weight.grad.clone()

    (found, found_grad), (expected, expected_grad) = accumulated(True), accumulated(False)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    # The gradient itself is rounded to the half type on its way to the weight.
    torch.testing.assert_close(found_grad, expected_grad, rtol=0.02, atol=0.02)


@EVERY_LOSS
@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_huge_and_tiny_logits_stay_finite(
    make_case: Callable, evaluate: Callable, objective: str, algorithm: str, scale: float
) -> None:
    case = make_case(30, 200, dtype=torch.float32)
    case.logits *= scale
    result = evaluate(case, objective, algorithm)
    assert result.losses.isfinite().all()
    assert result.grad.isfinite().all()
    assert 0 < result.losses[0] < 1


@EVERY_LOSS
@pytest.mark.parametrize("positives", [0, 5])
@pytest.mark.parametrize("delta", [0, 1.0])
def test_nan_among_the_negatives_gives_nan(
    make_case: Callable,
    evaluate: Callable,
    objective: str,
    algorithm: str,
    positives: int,
    delta: float,
) -> None:
    case = make_case(positives, 20)
    case.logits[(case.targets == 0).nonzero()[0]] = torch.nan
    assert evaluate(case, objective, algorithm, delta=delta).losses.isnan().all()


@EVERY_LOSS
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("positives", [5, 300])
def test_positive_that_is_not_finite_gives_nan(
    make_case: Callable,
    evaluate: Callable,
    objective: str,
    algorithm: str,
    value: float,
    positives: int,
) -> None:
    case = make_case(positives, 20)
    case.logits[case.is_positive.nonzero()[0]] = value
    result = evaluate(case, objective, algorithm)
    assert result.losses.isnan().all()
    assert result.grad.isnan().any()


@EVERY_LOSS
@pytest.mark.parametrize("delta", [0, 1.0])
def test_infinite_negatives_are_far_above_or_below(
    make_case: Callable, evaluate: Callable, objective: str, algorithm: str, delta: float
) -> None:
    case = make_case(5, 20)
    first, second = (case.targets == 0).nonzero()[:2]
    case.logits[first], case.logits[second] = 1e6, -1e6
    expected = evaluate(case, objective, algorithm, delta=delta)
    case.logits[first], case.logits[second] = torch.inf, -torch.inf
    found = evaluate(case, objective, algorithm, delta=delta)
    torch.testing.assert_close(found.losses, expected.losses)
    torch.testing.assert_close(found.grad, expected.grad)


@EVERY_NAME
def test_indexed_form_equals_the_dense_one(make_case: Callable, name: str) -> None:
    case, loss = make_case(20, 140, dtype=torch.float32), RankingLoss(name)
    targets = case.targets.view(40, 4).clone()
    ignored_rows = torch.zeros(40, dtype=torch.bool)
    ignored_rows[[3, 17, 39]] = True
    ignored_rows &= ~(targets > 0).any(1)
    assert ignored_rows.any()
    targets[ignored_rows] = -1
    boxes = case.box_losses if loss.objective == "alrp" else None
    dense_logits = case.logits.view(40, 4).clone().requires_grad_()
    dense = loss(dense_logits, targets, boxes)
    sum(dense.values()).backward()

    shuffle = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    positives = (targets.flatten() > 0).nonzero().squeeze(1)[shuffle]
    logits = case.logits.view(40, 4).clone().requires_grad_()
    indexed = loss.forward_indexed(
        logits,
        positives,
        targets.flatten()[positives],
        ignored_rows,
        None if boxes is None else boxes[shuffle],
    )
    sum(indexed.values()).backward()
    assert list(indexed) == list(dense)
    torch.testing.assert_close(indexed, dense)
    torch.testing.assert_close(logits.grad, dense_logits.grad)


@pytest.mark.parametrize("chunk_size", [1, 6, 50])
def test_indexed_form_ignores_rows_in_chunks_too(make_case: Callable, chunk_size: int) -> None:
    case = make_case(20, 140)
    ignored_rows = torch.arange(40) % 5 == 0
    logits = case.logits.view(40, 4)
    losses = [
        _indexed(RankingLoss("rs-exact", chunk_size=size), logits, case, ignored_rows=ignored_rows)
        for size in (None, chunk_size)
    ]
    torch.testing.assert_close(*losses)
    assert losses[0] != _indexed(RankingLoss("rs-exact"), logits, case)


@EVERY_NAME
def test_loss_says_what_it_is(name: str) -> None:
    loss = RankingLoss(name)
    assert loss.name == name
    assert (loss.objective, loss.algorithm) == LOSS_NAMES[name]
    assert loss.delta == (0.5 if loss.objective == "rs" else 1.0)
    assert loss.interpolated == (name in ("ap", "ap-exact"))
    second = {"ap": [], "rs": ["loss_sort"], "alrp": ["loss_loc"]}[loss.objective]
    boxes = torch.rand(1) if loss.objective == "alrp" else None
    losses = loss(torch.zeros(2), torch.tensor([1.0, 0.0]), boxes)
    assert list(losses) == ["loss_rank", *second]
    assert name in repr(loss)


def test_options_reach_the_loss(make_case: Callable) -> None:
    case = make_case(20, 100)
    plain = ap_loss(case.logits, case.targets, delta=0.3, algorithm="loop")
    loss = RankingLoss("ap-exact", delta=0.3, interpolated=False)
    torch.testing.assert_close(loss(case.logits, case.targets)["loss_rank"], plain)
    better = RankingLoss("bap", delta=0.0, interpolated=True)(case.logits, case.targets)
    loop = ap_loss(case.logits, case.targets, delta=0, interpolated=True, algorithm="loop")
    torch.testing.assert_close(better["loss_rank"], loop)


def test_exact_is_the_default(make_case: Callable) -> None:
    case = make_case(20, 100)
    for loss, boxes in ((ap_loss, ()), (rank_sort_loss, ()), (alrp_loss, (case.box_losses,))):
        found = loss(case.logits, case.targets, *boxes)
        torch.testing.assert_close(
            found, loss(case.logits, case.targets, *boxes, algorithm="exact"), rtol=0, atol=0
        )


def test_whole_number_targets_are_labels() -> None:
    logits = torch.tensor([1.0, 0.5, 2.0, 3.0])
    labels = torch.tensor([1, 0, -1, 1])
    assert ap_loss(logits, labels) == ap_loss(logits, labels.float())


@EVERY_NAME
def test_graph_is_freed_with_its_losses(make_case: Callable, name: str) -> None:
    case = make_case(20, 100)
    losses = _indexed(RankingLoss(name), case.logits.requires_grad_(), case)
    graph = weakref.ref(losses["loss_rank"].grad_fn)
    gc.disable()
    try:
        del losses
        assert graph() is None
    finally:
        gc.enable()


def test_no_gradient_is_needed() -> None:
    assert not ap_loss(torch.zeros(2), torch.tensor([1.0, 0.0])).requires_grad


LOGITS, TARGETS, BOXES = torch.zeros(3), torch.tensor([1.0, 0.0, -1.0]), torch.zeros(1)
INDEX, ONE = torch.tensor([0]), torch.ones(1)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ap_loss(LOGITS, TARGETS[:2]), r"shape of logits, \[3\], not \[2\]"),
        (lambda: ap_loss(LOGITS.long(), TARGETS), "logits must be float16.* not torch.int64"),
        (lambda: ap_loss(LOGITS, TARGETS.cfloat()), "targets must be real .* not torch.complex64"),
        (lambda: ap_loss(LOGITS, TARGETS * 2), r"-1 or in \[0, 1\]; one of them is 2.0"),
        (lambda: ap_loss(LOGITS, TARGETS * torch.nan), r"-1 or in \[0, 1\]; one of them is nan"),
        (lambda: ap_loss(LOGITS, TARGETS, delta=-1), "delta must be .* at least 0, not -1"),
        (lambda: rank_sort_loss(LOGITS, TARGETS, delta=float("nan")), "delta must be .* not nan"),
        (lambda: ap_loss(LOGITS, TARGETS, delta=float("inf")), "delta must be .* not inf"),
        (lambda: ap_loss(LOGITS, TARGETS, delta="1"), "delta must be .* not '1'"),
        (
            lambda: ap_loss(LOGITS, TARGETS, algorithm="fast"),
            "'fast'; choose one of loop, bucketed",
        ),
        (lambda: ap_loss(LOGITS, TARGETS, chunk_size=0), "chunk_size must be .* not 0"),
        (
            lambda: ap_loss(LOGITS, TARGETS, chunk_size=9, algorithm="loop"),
            "only algorithm 'exact' has a chunk_size, not 'loop'",
        ),
        (lambda: alrp_loss(LOGITS, TARGETS, BOXES, algorithm="bucketed"), "no bucketed form"),
        (lambda: alrp_loss(LOGITS, TARGETS, torch.zeros(2)), r"each of the 1 positives.*\[2\]"),
        (lambda: alrp_loss(LOGITS, TARGETS, BOXES.long()), "box_losses must be floating point"),
        (lambda: RankingLoss("ape"), "unknown loss 'ape'; choose one of ap, alrp, rs, bap"),
        (lambda: RankingLoss("rs", interpolated=True), "only the AP loss can be interpolated"),
        (lambda: RankingLoss("rs", delta=-0.1), "not -0.1"),
        (lambda: RankingLoss("alrp")(LOGITS, TARGETS), "needs box_losses"),
        (
            lambda: RankingLoss("rs").forward_indexed(LOGITS, INDEX.int(), ONE),
            "int64 .* not torch.int32",
        ),
        (
            lambda: RankingLoss("rs").forward_indexed(LOGITS, INDEX[None], ONE[None]),
            r"flat indices.*\[1, 1\]",
        ),
        (
            lambda: RankingLoss("rs").forward_indexed(LOGITS, INDEX, torch.ones(2)),
            "qualities must hold one value for each of the 1 positives",
        ),
        (
            lambda: RankingLoss("rs").forward_indexed(LOGITS, INDEX, ONE, torch.zeros(2).bool()),
            r"ignored_rows must be a bool tensor over the rows of logits \[3\]",
        ),
        (
            lambda: RankingLoss("rs").forward_indexed(LOGITS, INDEX, ONE, torch.zeros(3)),
            "not torch.float32",
        ),
    ],
)
def test_bad_arguments_raise_a_useful_sentence(call: Callable, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


@EVERY_NAME
def test_works_on_every_device(make_case: Callable, name: str, device: str) -> None:
    case = make_case(30, 200, dtype=torch.float32)
    loss, boxes = RankingLoss(name), case.box_losses if "alrp" in name else None
    moved = case.to(device)
    moved_boxes = None if boxes is None else moved.box_losses
    found = loss(moved.logits.requires_grad_(), moved.targets, moved_boxes)
    sum(found.values()).backward()
    assert moved.logits.grad.device.type == device
    torch.testing.assert_close(
        {key: value.cpu() for key, value in found.items()},
        loss(case.logits, case.targets, boxes),
    )
