"""`bucketrank predict`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, say


def predict(
    run_dir: Annotated[Path, typer.Argument(help="A run's folder.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and predictions.json.")],
    weights: Annotated[
        str | None,
        typer.Option(help="best, last, or a checkpoint; left out, the run's best on val."),
    ] = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Leave out what scores less; left out, the run's best (F1 on val)."
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Detect objects in pictures: draw them, and write COCO results."""
    from bucketed_ranking.detectron2_setup import require_detectron2

    require_detectron2("Prediction")
    from bucketed_ranking.engine import inference

    files = inference.list_images(images)
    detector = inference.load_detector(str(run_dir), weights=weights, device=device)
    threshold = score_threshold
    if threshold is None:
        threshold = inference.best_threshold(detector)
    say(f"Detecting by {detector.describe_weights()}; what scores {threshold:.2f} or more is kept")
    report = inference.predict(
        detector,
        files,
        out,
        score_threshold=threshold,
        on_image=lambda path, count: say(f"{path}: {count} objects"),
    )
    for path, reason in report["unreadable"].items():
        say(f"Skipped {path}: {reason}")
    say(
        f"{len(files) - len(report['unreadable'])} pictures with "
        f"{len(report['predictions'])} objects, and predictions.json, are in {out}"
    )
