"""`bucketrank report`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Weights, say


def report(
    run_dir: Annotated[Path, typer.Argument(help="A run's folder.")],
    dataset: Annotated[
        str | None, typer.Option(help="Data set to report on; left out, the run's own.")
    ] = None,
    weights: Weights = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The HTML file; left out, RUN_DIR/report.html or, with --dataset or --weights, "
            "RUN_DIR/eval-DATASET-WEIGHTS/report.html."
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Write one HTML page on where a detector fails: AP, curves, errors, its worst pictures."""
    from rich.console import Console
    from rich.progress import Progress

    from bucketed_ranking.detectron2_setup import require_detectron2

    require_detectron2("A report")
    from bucketed_ranking.engine.report import report_run

    with Progress(console=Console(), transient=True) as progress:
        task = progress.add_task("evaluating", total=None)
        path = report_run(
            run_dir,
            dataset=dataset,
            weights=weights,
            device=device,
            output=output,
            on_batch=lambda done, total: progress.update(task, completed=done, total=total),
        )
    say(f"Written to {path}")
