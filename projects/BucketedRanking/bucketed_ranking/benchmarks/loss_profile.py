"""The whole of `bucketrank profile-loss`: cases, measurement and files."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from .. import environment
from ..console import ProgressDisplay, say
from ..detectron2_setup import require_detectron2
from ..errors import BucketRankError
from . import timing
from .loss_cases import (
    REFERENCES,
    Case,
    GridPoint,
    LossCalls,
    algorithm_of,
    loop_of,
    make_case,
    unmade_case,
)
from .output import csv_text
from .plots import draw_profile
from .timing import Timing, TimingOptions

JSON, CSV, PICTURE = "profile.json", "profile.csv", "profile.png"
_METHODS = {
    "time": "forward and backward, wall clock, device synchronised; every repeat calls each loss "
    "once; ratios are ratios of medians",
    "what memory counts": "the gradient, not the logits; loops: with at most 64 of the positives",
    **REFERENCES,
}
# A loop's warm-up and memory are taken with so few positives: both depend on the logits alone.
_LIGHT_POSITIVES = 64


def profile_losses(
    losses: Sequence[str],
    output: Path,
    console: Console,
    *,
    grid: Sequence[GridPoint] = (),
    training_step: dict[str, Any] | None = None,
    options: TimingOptions | None = None,
    device: str | None = None,
    dtype: str = "float32",
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Measure, and write profile.json, .csv and .png into the output folder.

    Args:
        grid: made-up cases.
        training_step: arguments of `engine.loss_inputs`: cases from there instead.
        device: None: CUDA where there is one, else the CPU.
        force: replace what an earlier run has left in `output`.

    Returns:
        The content of profile.json.

    Raises:
        BucketRankError: the folder holds a profile already, the device does not exist, or there is
            no such step of training.
    """
    if (output / JSON).exists() and not force:
        raise BucketRankError(
            f"There is a profile in {output} already; choose another folder with --out, or "
            "add --force to replace it."
        )
    where, options = torch.device(environment.choose_device(device)), options or TimingOptions()
    kind = getattr(torch, dtype)
    cases: Sequence[Case | GridPoint] = grid
    source: dict[str, Any] = {"grid": [asdict(point) for point in grid]}
    if training_step:
        config, after = training_step["config"], training_step["after"]
        say(console, f"Training {config} up to iteration {after}")
        cases = capture_cases(**training_step, dtype=kind, device=str(where), seed=seed)
        source = {"training_step": training_step}
    results = []
    with ProgressDisplay(len(cases) * (len(losses) + options.repeats), console) as progress:
        for given in cases:
            case, made = given, Timing("a case")
            if isinstance(given, GridPoint):  # made now: there may not be room for two
                case = unmade_case(given)
                with timing.skip_without_memory(made):
                    case = make_case(given, dtype=kind, device=str(where), seed=seed)
            timings = [Timing(loss, skipped=made.skipped) for loss in losses]
            if made.skipped is None:
                measure_case(case, timings, options, progress)
            results.append(describe_case(case, timings))
    memory = timing.MEMORY_METHODS.get(where.type, "not measured on this device")
    profile = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(where, dtype),
        "source": {**source, "seed": seed},
        "timing": asdict(options),
        "methods": {**_METHODS, "memory": memory},
        "cases": results,
    }
    write_profile(profile, output)
    return profile


def capture_cases(*, dtype: torch.dtype, **step: Any) -> list[Case]:
    """What a detector gives its losses in a step of training; see `engine.loss_inputs`."""
    require_detectron2("Profiling the losses of a detector")
    from ..engine.loss_inputs import capture_loss_inputs

    cases = []
    for number, call in enumerate(capture_loss_inputs(**step), start=1):
        name = f"{call.pop('head')}, call {number}"
        call["ignored_rows"] = call["ignored_rows"] if call["ignored_rows"].any() else None
        if call["box_losses"] is None:  # only aLRP is given them; what stands in takes as long
            call["box_losses"] = 1 - call["qualities"]
        case = Case(name, **{**call, "logits": call["logits"].to(dtype)})
        sizes = f"P = {case.num_positives:,}, N = {case.num_negatives:,}"
        cases.append(replace(case, name=f"{name}: {sizes}"))
    return cases


def measure_case(
    case: Case, timings: Sequence[Timing], options: TimingOptions, progress: ProgressDisplay
) -> None:
    """Time and memory of every loss on a case: memory first, then warm-up, then the timed calls.

    There is a step of progress for each loss, and one for each repeat.
    """

    def advance(text: str) -> None:
        progress.advance(f"{case.name}: {text}")

    device, calls = case.logits.device, LossCalls(case)
    built: dict[str, timing.Call] = {}
    for loss in timings:
        advance(loss.name)
        with timing.skip_without_memory(loss):
            loss.predicted_seconds = seconds = _predicted_seconds(loss.name, case)
            if case.num_positives == 0 and loss.name != "sort":
                loss.skipped = "the case has no positives"
            elif seconds is not None and seconds > options.max_seconds:
                wanted = f"at most {options.max_seconds:g} s wanted"
                loss.skipped = f"predicted to take {seconds:.3g} s a call; {wanted}"
            else:
                call = built[loss.name] = calls.build(loss.name)
                if algorithm_of(loss.name) == "loop" and case.num_positives > _LIGHT_POSITIVES:
                    call = LossCalls(case.thinned(_LIGHT_POSITIVES)).build(loss.name)
                loss.peak_bytes = timing.peak_bytes(call, device)
                timing.warm_up(loss, call, device, options)
    timing.time_calls(timings, built, device, options, advance)


def _predicted_seconds(loss: str, case: Case) -> float | None:
    """The time of what grows with P x N or P x P, from two calls with fewer positives."""
    count, algorithm = case.num_positives, algorithm_of(loss)
    if algorithm == "loop" and count > 16:
        fewer, more, power = 4, 16, 1
    elif algorithm == "bucketed" and count > 2000:
        fewer, more, power = count // 8, count // 4, 2
    else:
        return None
    few, many = (_seconds_thinned(loss, case, c) for c in (fewer, more))
    slope = max(0.0, many - few) / (more**power - fewer**power)
    return many + slope * (count**power - more**power)


def _seconds_thinned(loss: str, case: Case, count: int) -> float:
    call = LossCalls(case.thinned(count)).build(loss)
    return min(timing.timed(call, case.logits.device) for _ in range(2))


def describe_case(case: Case, timings: Sequence[Timing]) -> dict[str, Any]:
    """What profile.json says of a case: its sizes, and in "entries" what each loss cost on it."""
    point = case.grid_point
    return {
        "name": case.name,
        "regime": point and point.regime,
        "grid_negatives": point and point.negatives,
        "positives": case.num_positives,
        "negatives": case.num_negatives,
        "relevant_negatives": case.relevant_negatives(),
        "logits_shape": list(case.logits.shape),
        "entries": describe_timings(timings, case.logits.numel()),
    }


def describe_timings(timings: Sequence[Timing], num_logits: int) -> list[dict[str, Any]]:
    """Seconds, ratios of medians and memory of each loss; None for what is not known."""
    medians = {t.name: statistics.median(t.seconds) for t in timings if t.seconds}
    entries = []
    for loss in timings:
        low, quartile_1, median, quartile_3, high = (
            np.quantile(loss.seconds, (0, 0.25, 0.5, 0.75, 1)).tolist()
            if loss.seconds
            else [None] * 5
        )
        entry = {
            "loss": loss.name,
            "algorithm": algorithm_of(loss.name),
            "median_s": median,
            "quartile_1_s": quartile_1,
            "quartile_3_s": quartile_3,
            "min_s": low,
            "max_s": high,
            "repeats": len(loss.seconds),
            "times_faster_than_loop": _ratio(medians.get(loop_of(loss.name) or ""), median),
            "times_focal": _ratio(median, medians.get("focal")),
            "peak_extra_bytes": loss.peak_bytes,
            "peak_extra_bytes_per_logit": _ratio(loss.peak_bytes, num_logits),
            "predicted_s": loss.predicted_seconds,
            "skipped": loss.skipped,
            "seconds": loss.seconds,
        }
        entries.append(entry)
    return entries


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def describe_machine(device: torch.device, dtype: str) -> dict[str, Any]:
    """The machine and the versions that a measurement belongs to."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "cpu": environment.cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
        "system": f"{platform.system()} {platform.release()}",
        "dtype": dtype,
        **environment.installed_versions("fvcore"),
        "git_commit": environment.git_commit(),
    }


def write_profile(profile: dict[str, Any], output: Path) -> None:
    """Write the JSON with every single time, the CSV with a line a loss and case, the picture."""
    output.mkdir(parents=True, exist_ok=True)
    (output / JSON).write_text(json.dumps(profile, indent=2) + "\n")
    facts = ("regime", "positives", "negatives", "relevant_negatives")
    end = {"date": profile["date"], **profile["machine"]}
    lines = []
    for case in profile["cases"]:
        start = {"case": case["name"], **{name: case[name] for name in facts}}
        for entry in case["entries"]:
            lines.append(start | {k: v for k, v in entry.items() if k != "seconds"} | end)
    (output / CSV).write_text(csv_text(lines))
    draw_profile(profile["cases"], machine_in_words(profile), output / PICTURE)


def machine_in_words(profile: dict[str, Any]) -> str:
    """Machine, versions and date in one line."""
    machine, date = profile["machine"], profile["date"][:10]
    threads = f"{machine['threads']} thread" + "s" * (machine["threads"] != 1)
    where = machine["gpu"] or f"{machine['cpu']}, {threads}"
    versions = f"torch {machine['torch']}, bucketrank {machine['bucketrank']}"
    return f"{where}, {machine['dtype']}, {versions}, {date}"
