"""Seconds and comparisons of all classification losses of one training step of Co-DETR at full size.

    python docs/results/brs-detr/time_losses.py --batch 2

One forward pass on made-up pictures, with random weights, collects what every loss is given: the
logits, positives and qualities of all decoder layers, the encoder, both groups of extra queries and
the three heads. Then all losses of the step, forward and backward, are timed one after the other,
by turns, in CPU seconds of one thread. `score` is focal loss on the same logits, but in the RPN binary cross-entropy of 256
anchors an image, and in the RoI head softmax cross-entropy of 512 regions, as Co-DETR has it.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from bucketed_ranking.benchmarks.loss_cases import Case, LossCalls
from bucketed_ranking.benchmarks.training_steps import make_input
from bucketed_ranking.engine.loss_inputs import _record_calls
from bucketed_ranking.engine.setup import load_config
from bucketed_ranking.losses import bucketed, dominance, exact, rs

LOSSES = ("score", "rs", "brs", "rs-exact")
SAMPLED = {"RankingRPN": 256, "RankingFastRCNNOutputLayers": 512}


def collect(config: str, batch: int, size: tuple[int, int], grad: bool) -> tuple[list[Case], dict]:
    """The cases of a step, and the seconds of the pass and of the assignment in it."""
    # Without its weights, a frozen normalisation normalises nothing.
    cfg = load_config(config, loss="rs-exact", options=["MODEL.RESNETS.NORM", "BN"], device="cpu")
    torch.manual_seed(0)
    model, calls = build_model(cfg).train(), []
    generator = torch.Generator().manual_seed(0)
    pictures = [make_input(cfg, size, generator) for _ in range(batch)]

    def step() -> None:
        with EventStorage():
            losses = model(pictures)
        if grad:
            sum(losses.values()).backward()

    with torch.set_grad_enabled(grad):
        if grad:
            step()  # the first is slower
        _record_calls(model, calls)
        match, assignment = model.assigner._match, []

        def timed_match(*given):
            found = []
            assignment.append(timed(lambda: found.append(match(*given))))
            return found[0]

        model.assigner._match = timed_match
        seconds = timed(step)
    cases = []
    for number, call in enumerate(calls):
        ignored = call["ignored_rows"]
        call["ignored_rows"] = ignored if ignored.any() else None
        call["box_losses"] = 1 - call["qualities"]
        cases.append(Case(f"{call.pop('head')} {number}", **call))
    return cases, {"step": seconds, "assignment": sum(assignment)}


def timed(call: Callable[[], object]) -> float:
    """CPU seconds, which others on the machine hardly disturb."""
    start = time.process_time()
    call()
    return time.process_time() - start


def build(loss: str, cases: list[Case], batch: int) -> Callable[[], None]:
    """One pass of a loss over all cases."""
    calls = []
    for case in cases:
        sampled = next((n for head, n in SAMPLED.items() if case.name.startswith(head)), None)
        if loss != "score":
            calls.append(LossCalls(case).build(loss))
        elif sampled is None:
            calls.append(LossCalls(case).build("focal"))
        else:
            calls.append(sampled_call(case, sampled * batch))

    def call() -> None:
        for each in calls:
            each()

    return call


def sampled_call(case: Case, count: int) -> Callable[[], None]:
    logits = case.logits[:count].detach()
    softmax = logits.shape[1] > 1
    if softmax:  # and a column for the background
        logits = F.pad(logits, (0, 1))
    labels = torch.zeros(len(logits), dtype=torch.int64)
    logits.requires_grad_()

    def call() -> None:
        if softmax:
            F.cross_entropy(logits, labels).backward()
        else:
            F.binary_cross_entropy_with_logits(logits[:, 0], labels.float()).backward()
        logits.grad = None

    return call


def comparisons(call: Callable[[], None]) -> int:
    """Pairs of logits that a pass compares: by the relation H, and by binary search."""
    pairs = 0

    def counted(function, number: Callable[..., int]):
        def count(*given, **named):
            nonlocal pairs
            pairs += number(*given)
            return function(*given, **named)

        return count

    def searched(borders, values, *_):
        return values.numel() * math.ceil(math.log2(len(borders) + 1))

    searching = counted(torch.searchsorted, searched)
    with (
        patch.object(rs, "relation", counted(rs.relation, lambda x, _: x.numel())),
        patch.object(bucketed, "relation", counted(bucketed.relation, lambda x, _: x.numel())),
        patch.object(dominance, "relation", counted(dominance.relation, lambda x, _: x.numel())),
        patch.object(bucketed.torch, "searchsorted", searching),
        # Its table of cells saves most of the search on a CPU; that is not taken off here.
        patch.object(exact, "count_below", counted(exact.count_below, searched)),
    ):
        call()
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="co_deformable_detr_R_50_1x")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), help="height, width")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backward", action="store_true", help="Of the model too, for shares.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases, seconds = collect(given.config, given.batch, tuple(given.size), given.backward)
    what = "step" if given.backward else "forward pass"
    share = seconds["assignment"] / seconds["step"]
    print(f"{what}: {seconds['step']:.2f} s, assignment {seconds['assignment']:.4f} s ({share:.2%})")
    print("| head and call | logits | positives | relevant negatives |\n|---|---|---|---|")
    for case in cases:
        numbers = case.logits.numel(), case.num_positives, case.relevant_negatives()
        print(f"| {case.name} | " + " | ".join(f"{n:,}" for n in numbers) + " |")
    built = {loss: build(loss, cases, given.batch) for loss in LOSSES}
    counts = {loss: comparisons(call) for loss, call in built.items()}  # and warms up
    seconds = {loss: [] for loss in LOSSES}
    for _ in range(given.repeats):
        for loss, call in built.items():
            seconds[loss].append(timed(call))
    medians = {loss: statistics.median(each) for loss, each in seconds.items()}
    print("\n| loss | seconds | least .. most | `rs` takes | comparisons |\n|---|---|---|---|---|")
    for loss, each in seconds.items():
        ratio = f"{medians['rs'] / medians[loss]:.1f} x"
        spread = f"{min(each):.3f} .. {max(each):.3f}"
        print(f"| `{loss}` | {medians[loss]:.3f} | {spread} | {ratio} | {counts[loss]:,} |")


if __name__ == "__main__":
    main()
