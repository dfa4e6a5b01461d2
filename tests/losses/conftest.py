"""What the tests of the losses share: made-up rankings, and losses with their gradients."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bucketed_ranking.losses import alrp_loss, ap_loss, rank_sort_loss

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
        ],
    ),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each device that the losses are to work on."""
    return request.param


@dataclass
class Case:
    """A ranking with dense targets."""

    logits: Tensor
    targets: Tensor
    box_losses: Tensor

    def to(self, target: torch.dtype | str) -> "Case":
        """The same values in another type or on another device."""
        return Case(self.logits.to(target), self.targets.to(target), self.box_losses.to(target))

    @property
    def is_positive(self) -> Tensor:
        return self.targets > 0


@dataclass
class Result:
    """Losses, and the gradients of their sum with weights 1, 2, ..."""

    losses: Tensor
    grad: Tensor
    box_grad: Tensor | None


def _logits(kind: str, positives: int, negatives: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(positives + negatives, dtype=torch.float64, generator=generator)
    if kind == "trained":
        noise[positives:] -= 4
    elif kind == "solved":
        noise[:positives] += 20
    spread = {"large": 1e4, "tiny": 1e-4, "constant": 0}.get(kind, 1)
    steps = {"quarters": 4, "tenths": 10}.get(kind)
    values = noise * spread + (1e4 if kind == "shifted" else 0)
    return values if steps is None else (values * steps).round() / steps


def _qualities(kind: str, count: int, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(count, dtype=torch.float64, generator=generator).clamp(min=1e-3)
    if kind == "tied":
        return (uniform * 4).ceil() / 4
    if kind == "extreme":
        return torch.where(uniform < 0.5, 1e-30, 1.0)
    return torch.ones_like(uniform) if kind == "ones" else uniform


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """Builds a shuffled ranking: of how many positives and negatives, of which kind."""

    def make(
        positives: int,
        negatives: int,
        kind: str = "normal",
        quality: str = "uniform",
        seed: int = 0,
        ignored: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> Case:
        generator = torch.Generator().manual_seed(seed)
        logits = _logits(kind, positives, negatives + ignored, generator)
        targets = torch.zeros_like(logits)
        targets[:positives] = _qualities(quality, positives, generator)
        targets[positives + negatives :] = -1
        order = torch.randperm(len(logits), generator=generator)
        box_losses = torch.rand(positives, dtype=torch.float64, generator=generator)
        return Case(logits[order], targets[order], box_losses).to(dtype)

    return make


@pytest.fixture(scope="session")
def evaluate() -> Callable[..., Result]:
    """Computes a loss and its gradients by the public functions."""

    def run(case: Case, objective: str, algorithm: str, **options: object) -> Result:
        logits = case.logits.clone().requires_grad_()
        boxes = case.box_losses.clone().requires_grad_()
        options["algorithm"] = algorithm
        if objective == "ap":
            losses = (ap_loss(logits, case.targets, **options),)
        elif objective == "rs":
            losses = rank_sort_loss(logits, case.targets, **options)
        else:
            losses = alrp_loss(logits, case.targets, boxes, **options)
        sum(weight * loss for weight, loss in enumerate(losses, 1)).backward()
        return Result(torch.stack(losses).detach(), logits.grad, boxes.grad)

    return run
