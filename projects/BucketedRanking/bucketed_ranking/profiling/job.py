"""The whole of `bucketrank profile-loss`: cases, measurement, files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..detectron2_setup import require_detectron2
from ..environment import choose_device
from ..errors import BucketRankError
from . import memory, plots, report
from .cases import Case, GridPoint, choose_dtype, make_case
from .progress import StepProgress
from .report import CaseResult, Profile
from .timing import TimingOptions, measure_case, num_advances

JSON, CSV, PICTURE = "profile.json", "profile.csv", "profile.png"


@dataclass(frozen=True)
class TrainingStep:
    """A step of training to take the cases from; see `capture.capture_cases`."""

    config: str
    dataset: str | None = None
    options: tuple[str, ...] = ()
    after: int = 0


@dataclass(frozen=True)
class Request:
    """What to measure, on what, and where to put it.

    Attributes:
        grid: made-up cases; left out of account with `training_step`.
        device: None: CUDA where there is one, else the CPU.
        force: replace what an earlier run has left in `output`.
    """

    losses: Sequence[str]
    output: Path
    grid: Sequence[GridPoint] = ()
    training_step: TrainingStep | None = None
    timing: TimingOptions = field(default_factory=TimingOptions)
    device: str | None = None
    dtype: str = "float32"
    seed: int = 0
    force: bool = False


def training_step(
    config: str | None, dataset: str | None, options: Sequence[str], after: int
) -> TrainingStep | None:
    """The step of training that a user means; None where no config is given.

    Raises:
        BucketRankError: something that belongs to a config is given without one.
    """
    if config is not None:
        return TrainingStep(config, dataset, tuple(options), after)
    if dataset is not None or options or after:
        raise BucketRankError(
            "--dataset, --after and KEY VALUE pairs describe a step of training; they go with "
            "--from-training CONFIG."
        )
    return None


def profile_losses(request: Request, console: Console) -> Profile:
    """Measure, write profile.json, .csv and .png into the output folder, and print the tables.

    Raises:
        BucketRankError: the folder holds a profile already, the device or type does not exist,
            or there is no such step of training.
    """
    dtype = choose_dtype(request.dtype)
    _check_output(request)
    device = torch.device(choose_device(request.device))
    step = request.training_step
    if step is None:
        source: dict[str, Any] = {"grid": [asdict(point) for point in request.grid]}
        results = _measure_grid(request, dtype, device, console)
    else:
        source = {"training_step": asdict(step)}
        cases = _capture(step, request.seed, device, console)
        results = _measure_captured(request, [case.with_dtype(dtype) for case in cases], console)
    machine = report.describe_machine(device, request.dtype)
    source["seed"] = request.seed
    profile = Profile(machine, source, request.timing, report.now(), results)
    write(profile, request.output)
    report.print_tables(profile, console)
    return profile


def write(profile: Profile, output: Path) -> None:
    """Write the three files of a profile into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    report.write_json(profile, output / JSON)
    report.write_csv(profile, output / CSV)
    plots.draw(profile, output / PICTURE)


def _check_output(request: Request) -> None:
    if (request.output / JSON).exists() and not request.force:
        raise BucketRankError(
            f"There is a profile in {request.output} already; choose another folder with --out, or "
            "add --force to replace it."
        )


def _capture(step: TrainingStep, seed: int, device: torch.device, console: Console) -> list[Case]:
    require_detectron2("Profiling the losses of a detector")
    from .capture import capture_cases

    console.print(f"Training {step.config} up to iteration {step.after}", highlight=False)
    return capture_cases(
        step.config,
        dataset=step.dataset,
        options=step.options,
        device=str(device),
        after=step.after,
        seed=seed,
    )


def _measure_captured(request: Request, cases: list[Case], console: Console) -> list[CaseResult]:
    total = num_advances(len(cases), len(request.losses), request.timing)
    with StepProgress(total, console) as progress:
        return [_measure(case, request, progress) for case in cases]


def _measure_grid(
    request: Request, dtype: torch.dtype, device: torch.device, console: Console
) -> list[CaseResult]:
    total = num_advances(len(request.grid), len(request.losses), request.timing)
    results = []
    with StepProgress(total, console) as progress:
        # One case at a time: there may not be room for two.
        for point in request.grid:
            reason = memory.too_large_to_make(point, dtype, device)
            if reason is None:
                case = make_case(point, dtype=dtype, device=str(device), seed=request.seed)
                results.append(_measure(case, request, progress))
                del case
            else:
                results.append(CaseResult.not_made(point, request.losses, reason))
    return results


def _measure(case: Case, request: Request, progress: StepProgress) -> CaseResult:
    entries = measure_case(case, request.losses, request.timing, progress.advance)
    return CaseResult.of(case, entries)
