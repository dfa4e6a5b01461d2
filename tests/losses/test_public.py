"""The losses against frozen outputs of their authors' own code.

frozen/public.json holds numbers alone: random cases, and what the public implementations of AP,
aLRP, RS, BRS and BAP made of them; it names their repositories and commits, the seed, and the
script that ran them. Logits have no ties, whose order the public code leaves to a sort.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bucketed_ranking.losses import LOSS_NAMES, alrp_loss, ap_loss, rank_sort_loss
from bucketed_ranking.losses.ap import AveragePrecision
from bucketed_ranking.losses.bucketed import Buckets
from bucketed_ranking.losses.objective import Tables, Terms

PUBLIC = json.loads((Path(__file__).parent / "frozen" / "public.json").read_text())
OUTPUTS = [
    pytest.param(output, id="-".join((output["loss"], str(output["delta"]), output["case"])))
    for output in PUBLIC["outputs"]
]


def case_of(output: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and box losses, to be differentiated, and targets."""
    case = PUBLIC["cases"][output["case"]]
    logits, targets, boxes = (
        torch.tensor(case[name], dtype=torch.float64)
        for name in ("logits", "targets", "box_losses")
    )
    return logits.requires_grad_(), targets, boxes.requires_grad_()


def assert_equal(output: dict, losses: tuple[Tensor, ...], logits: Tensor, boxes: Tensor) -> None:
    sum(losses).backward()
    # The public bucketed code knows float32 alone, and RS turns to it for delta 0.
    single = output["loss"] in ("brs", "bap") or (output["loss"] == "rs" and output["delta"] == 0)
    tolerance = 1e-6 if single else 1e-12
    found = {"losses": torch.stack(losses).detach(), "grad": logits.grad, "box_grad": boxes.grad}
    for name in found.keys() & output.keys():
        expected = torch.tensor(output[name], dtype=torch.float64)
        assert (found[name] - expected).norm() <= tolerance * expected.norm(), name


BAP = [output for output in OUTPUTS if output.values[0]["loss"] == "bap"]
# BAP differs on purpose, see test_bap_counts_a_positive_as_one, but for delta 0.
EQUAL = [output for output in OUTPUTS if output not in BAP or output.values[0]["delta"] == 0]


@pytest.mark.parametrize("output", EQUAL)
def test_equals_the_public_code(output: dict) -> None:
    objective, algorithm = LOSS_NAMES[output["loss"]]
    for each in ("loop", "exact") if algorithm == "loop" else ("bucketed",):
        logits, targets, boxes = case_of(output)
        options = {"delta": output["delta"], "algorithm": each}
        if objective == "ap":
            losses = (ap_loss(logits, targets, interpolated=algorithm == "loop", **options),)
        elif objective == "rs":
            losses = rank_sort_loss(logits, targets, **options)
        else:
            losses = alrp_loss(logits, targets, boxes, **options)
        assert_equal(output, losses, logits, boxes)


class PublicBucketedAP(AveragePrecision):
    """AP with H(0) = 1/2 for a positive in its own rank, as the public BAP code has it."""

    def tabulate(self, tables: Tables, values: Tensor) -> tuple[Terms, Tensor]:
        rank = tables.positives_above() + tables.negatives_above()
        error = tables.negatives_above() / rank
        return Terms((error.mean(),), (-error / error.numel(),)), 1 / rank


@pytest.mark.parametrize("output", BAP)
def test_bap_counts_a_positive_as_one(output: dict) -> None:
    """Ours counts it so in its own rank, as the AP Loss that BAP stands for; the public BAP counts
    it as 1/2 (as 1 at delta 0). Nothing else differs."""
    logits, targets, _ = case_of(output)
    values, is_positive = logits.detach(), targets > 0
    relevant = ~is_positive & (values >= values[is_positive].min() - output["delta"])
    buckets = Buckets(values[is_positive], output["delta"])
    buckets.add(values[relevant])
    terms, negative_grad = buckets.rank(PublicBucketedAP(output["delta"]), targets[is_positive])
    grad = torch.zeros_like(targets)
    grad[is_positive], grad[relevant] = terms.positive_grads[0], negative_grad
    expected = torch.tensor(output["grad"], dtype=torch.float64)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(terms.losses[0].item(), output["losses"][0], rtol=1e-6, atol=0)
    ours = ap_loss(logits, targets, delta=output["delta"], algorithm="bucketed")
    assert (ours < output["losses"][0] - 1e-4) == (output["delta"] > 0)
