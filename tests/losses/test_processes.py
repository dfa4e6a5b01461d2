"""One ranking over several processes equals that of one process with all logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bucketed_ranking.losses import RankingLoss
from bucketed_ranking.losses.processes import AT_ONCE
from tests.losses.conftest import Case
from tests.processes import rank_parts, rank_parts_by_kernels, run_processes

LOSSES = ("ap-exact", "alrp-exact", "rs-exact")
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
WORLD_SIZES = (2, pytest.param(4, marks=pytest.mark.slow))


def _split(case: Case, processes: int, how: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The case in one part a process: of equal sizes, uneven ones, with the last without positives,
    or with the first without anything."""
    place = torch.arange(len(case.logits))
    if how == "no positives":
        owner = torch.where(case.is_positive, place % (processes - 1), place % processes)
    elif how == "nothing":
        owner = 1 + place % (processes - 1)
    else:
        owner = place % processes if how == "even" else (place % 7).clamp(max=processes - 1)
    owner_of_box = owner[case.is_positive]
    return [
        (case.logits[owner == r], case.targets[owner == r], case.box_losses[owner_of_box == r])
        for r in range(processes)
    ]


def _one_process(loss: str, options: dict[str, Any], parts: list) -> dict[str, Tensor]:
    """The result of one process that has all parts."""
    logits, targets, boxes = (torch.cat(each) for each in zip(*parts, strict=True))
    losses = RankingLoss(loss, **options)(logits.requires_grad_(), targets, boxes.requires_grad_())
    sum(weight * each for weight, each in enumerate(losses.values(), 1)).backward()
    values = torch.stack(list(losses.values())).detach()
    return {"losses": values, "grad": logits.grad, "box_grad": boxes.grad}


def _cases(make_case: Callable, processes: int) -> list[dict[str, Any]]:
    kinds = [
        ("normal", 12, 60, {}), ("quarters", 30, 200, {"delta": 0}),
        ("trained", 1300, 500, {"chunk_size": 500}), ("solved", 5, 40, {"delta": 0.1}),
        ("shifted", 20, 100, {}), ("tenths", 0, 30, {}), ("normal", 1, 30, {}),
        ("normal", 6, 0, {}),
    ]  # fmt: skip
    cases = []
    for loss in LOSSES:
        for dtype in TOLERANCES:
            for how in ("even", "uneven", "no positives", "nothing"):
                for seed, (kind, positives, negatives, options) in enumerate(kinds):
                    case = make_case(positives, negatives, kind, "tied", seed, 4, dtype)
                    parts = _split(case, processes, how)
                    cases.append({"loss": loss, "options": options, "parts": parts, "how": how})
    return cases


@pytest.mark.parametrize("processes", WORLD_SIZES)
def test_losses_and_gradients_are_those_of_one_process(
    processes: int, make_case: Callable, relative_error: Callable
) -> None:
    cases = _cases(make_case, processes)
    _check(cases, run_processes(processes, rank_parts, cases), relative_error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without")
def test_kernels_give_what_one_process_has(make_case: Callable, relative_error: Callable) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    cases = [
        {"loss": loss, "options": {}, "how": how,
         "parts": _split(make_case(12, 60, "quarters", ignored=4, dtype=torch.float32), 2, how)}
        for loss in LOSSES
        for how in ("even", "no positives", "nothing")
    ]  # fmt: skip
    _check(cases, run_processes(2, rank_parts_by_kernels, cases), relative_error)


def _check(cases: list[dict[str, Any]], results: list, relative_error: Callable) -> None:
    for case, *found in zip(cases, *results, strict=True):
        what = case["loss"], case["options"], case["how"]
        expected = _one_process(case["loss"], case["options"], case["parts"])
        tolerance = TOLERANCES[expected["losses"].dtype]
        for each in found:
            assert torch.equal(each["losses"], found[0]["losses"]), what
            assert len(each["sent"]) == len(found[0]["sent"]), what
        assert relative_error(found[0]["losses"], expected["losses"]) <= tolerance, what
        for name in ("grad", "box_grad") if "alrp" in case["loss"] else ("grad",):
            together = torch.cat([each[name] for each in found])
            assert relative_error(together, expected[name]) <= tolerance, (name, what)


def test_nan_of_one_process_shows_on_all_and_bytes_grow_with_positives_alone(
    make_case: Callable,
) -> None:
    cases = []
    for where in ("positive", "negative", "no positives"):
        case = make_case(0 if where == "no positives" else 8, 40)
        parts = _split(case, 2, "even")
        logits, targets, _ = parts[1]
        logits[(targets > 0) if where == "positive" else (targets == 0)] = torch.nan
        cases += [{"loss": loss, "options": {}, "parts": parts} for loss in LOSSES]
    sizes = [(20, 1_000), (20, 100_000), (200, 1_000), (2_000, 1_000)]
    for positives, negatives in sizes:
        case = make_case(positives, negatives, dtype=torch.float32)
        cases += [{"loss": loss, "options": {}, "parts": _split(case, 2, "no positives")}
                  for loss in LOSSES]  # fmt: skip
    results = run_processes(2, rank_parts, cases)
    of_nan = 3 * len(LOSSES)
    for found in results:
        for result in found[:of_nan]:
            assert result["losses"].isnan().all()
        numbers = [sum(result["sent"]) for result in found[of_nan:]]
        for start in range(len(LOSSES)):
            few, more_negatives, more, most = numbers[start :: len(LOSSES)]
            assert few == more_negatives
            # A logit and a value in float32 for so many positives; for each of 2 P + 1 bins two
            # sums in float64, and whether anything is not a number.
            assert few == (1 + AT_ONCE) * 8 + (2 * (2 * 20 + 1) + 1) * 8
            assert more - few == 180 * 32
            assert most - few == 1980 * 32 + (2000 - AT_ONCE) * 8
        collectives = [len(result["sent"]) for result in found[of_nan:]]
        assert collectives == [2] * (3 * len(LOSSES)) + [3] * len(LOSSES)


@pytest.mark.parametrize("loss", ["ap", "bap", "brs", "alrp"])
def test_published_losses_rank_in_one_process(loss: str) -> None:
    with pytest.raises(ValueError, match="only algorithm 'exact' ranks over a group"):
        RankingLoss(loss)(torch.zeros(3), torch.zeros(3), torch.zeros(0), group="all of them")
