"""The criterion with one ranking over several processes."""

import pytest
import torch
from torch import Tensor

from bucketed_ranking.criterion import positive_rows
from tests.parallel_steps import call_criterion, criterion_parts
from tests.processes import run_processes

EXACT = ("ap-exact", "alrp-exact", "rs-exact", "vfl")
OPTIONS = (
    {},
    {"self_balance": True, "weight": 0.2},
    {"self_balance": False, "box_weight": {"loss_bbox": 5.0, "loss_giou": 2.0}},
    {"self_balance": True, "box_weight": {"loss_bbox": 5.0, "loss_giou": 2.0}},
)


def one_head(positives: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits, labels and boxes of 60 anchors for three classes, five of them ignored."""
    generator = torch.Generator().manual_seed(positives)
    labels = torch.full((60,), 3)
    labels[torch.randperm(55, generator=generator)[:positives]] = torch.arange(positives) % 3
    labels[55:] = -1
    corners = 50 * torch.rand(positives, 2, generator=generator, dtype=dtype)
    targets = torch.cat([corners, corners + 20], dim=1)
    return {
        "logits": torch.randn(60, 3, generator=generator, dtype=dtype),
        "labels": labels,
        "positives": positive_rows(labels, 3),
        "pred_boxes": targets + 2 * torch.randn(positives, 4, generator=generator, dtype=dtype),
        "target_boxes": targets,
    }


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_losses_balance_statistics_and_gradients_are_those_of_one_process(processes):
    cases = []
    for dtype in (torch.float32, torch.float64):
        for positives in (0, 1, 12):
            head = one_head(positives, dtype)
            owner = torch.arange(60) % processes
            # The last process without positives, and anchors in even parts.
            without = torch.where(head["labels"] < 3, owner % (processes - 1), owner)
            for owners in (owner, without):
                rows = [(owners == rank).nonzero().squeeze(1) for rank in range(processes)]
                for loss in EXACT:
                    for options in OPTIONS:
                        if "alrp" not in loss or "box_weight" not in options:
                            cases.append((loss, options, head, rows))
    results = run_processes(processes, criterion_parts, cases)
    for case, *found in zip(cases, *results, strict=True):
        loss, options, head, rows = case
        expected, grad, box_grad = call_criterion(loss, options, head)
        how = {"rtol": 1e-10, "atol": 1e-12} if grad.dtype == torch.float64 else {}
        place = torch.cat([each[torch.isin(each, head["positives"])] for each in rows])
        order = place.argsort()
        for result, _, _ in found:
            for name in ("losses", "classification", "statistics"):
                torch.testing.assert_close(getattr(result, name), getattr(expected, name), **how)
        for name in ("scores", "qualities"):
            parts = torch.cat([getattr(result, name) for result, _, _ in found])
            torch.testing.assert_close(parts[order], getattr(expected, name), **how)
        # Averaged over the processes, as DistributedDataParallel does.
        parts = torch.cat([each / processes for _, each, _ in found])
        torch.testing.assert_close(parts[torch.cat(rows).argsort()], grad, **how)
        parts = torch.cat([each / processes for _, _, each in found])
        torch.testing.assert_close(parts[order], box_grad, **how)
