"""`bucketrank replay`."""

import math
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, say

_SHOWN = 10


def replay(
    step: Annotated[
        Path, typer.Argument(metavar="FILE", help="A step that training saved: RUN_DIR/nan/*.pth.")
    ],
    device: Device = None,
) -> None:
    """Run a step of training whose losses were not finite again, and show where it breaks."""
    from bucketed_ranking.detectron2_setup import require_detectron2

    require_detectron2("Running a step")
    from bucketed_ranking.engine.replay import replay as run

    found = run(step, device)
    say(f"Iteration {found.iteration}, images {', '.join(found.images)}")
    for name, value in found.losses.items():
        say(f"  {name} {value:.6g} (in training: {found.recorded.get(name, math.nan):.6g})")
    if found.problem is not None:
        say(f"Detectron2 says: {found.problem}")
    if found.weights:
        say(f"Weights that are not finite before the step: {_listed(found.weights)}")
    if found.first_output is not None:
        say(f"First module with an output that is not finite: {found.first_output or 'the model'}")
    if found.gradients:
        say(f"Gradients that are not finite: {_listed(found.gradients)}")
    if all(map(math.isfinite, found.losses.values())) and not found.gradients:
        say("Here all losses and gradients are finite.")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
