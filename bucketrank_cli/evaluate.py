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
    from bucketed_ranking.engine import inference

    detector, name = inference.load_for_evaluation(
        source, dataset, weights=weights, device=device, options=options or []
    )
    folder = output or inference.default_output(detector, name)
    say(f"Evaluating {detector.describe_weights()} on {name}")
    with Progress(console=Console(), transient=True) as progress:
        task = progress.add_task("evaluating", total=None)
        results = inference.evaluate(
            detector,
            name,
            folder,
            on_batch=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print_results(results)
    say(f"Written to {folder / 'results.json'}")
