"""`bucketrank eval`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import ConfigOptions, Device, Weights, print_results, say


def evaluate(
    source: Annotated[
        str, typer.Argument(metavar="RUN_DIR|CONFIG", help="A run's folder, or a config.")
    ],
    options: ConfigOptions = None,
    weights: Weights = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data set to evaluate on; left out, the run's own.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for results.json; left out, RUN_DIR/eval-DATASET-WEIGHTS."),
    ] = None,
    device: Device = None,
) -> None:
    """Measure COCO AP of a trained detector on a data set."""
    from rich.console import Console
    from rich.progress import Progress

    from bucketed_ranking.detectron2_setup import require_detectron2

    require_detectron2("Evaluation")
    import bucketed_ranking

    with Progress(console=Console(), transient=True) as progress:
        task = progress.add_task("evaluating", total=None)
        measured = bucketed_ranking.evaluate(
            source,
            weights=weights,
            dataset=dataset,
            output=output,
            device=device,
            options=options or [],
            say=say,
            on_batch=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print_results(measured)
    say(f"Written to {measured.folder / 'results.json'}")
