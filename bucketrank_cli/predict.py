"""`bucketrank predict`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Weights, say


def predict(
    run_dir: Annotated[Path, typer.Argument(help="A run's folder.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and predictions.json.")],
    weights: Weights = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Leave out what scores less; left out, the run's best (F1 on val)."
        ),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            help="Instead: leave out what scores too little for this share of right ones on val.",
        ),
    ] = None,
    raw_scores: Annotated[
        bool,
        typer.Option("--raw-scores", help="Scores of the model, not how likely it is right."),
    ] = False,
    device: Device = None,
) -> None:
    """Detect objects in pictures: draw them, and write COCO results."""
    from bucketed_ranking.detectron2_setup import require_detectron2

    require_detectron2("Prediction")
    from bucketed_ranking.engine import inference
    from bucketed_ranking.engine.picture_files import list_images
    from bucketed_ranking.errors import BucketRankError

    if score_threshold is not None and precision is not None:
        raise BucketRankError("Give either --score-threshold or --precision, not both.")
    files = list_images(images)
    detector = inference.load_detector(str(run_dir), weights=weights, device=device)
    threshold = score_threshold
    if threshold is None:
        threshold = inference.best_threshold(detector, precision=precision, raw_scores=raw_scores)
    if detector.calibration is None and not raw_scores:
        say(
            "Scores are the model's own, not how likely it is right: these weights were not "
            "evaluated on the validation data of the run, or found too little there."
        )
    say(f"Detecting by {detector.describe_weights()}; what scores {threshold:.2f} or more is kept")
    report = inference.predict(
        detector,
        files,
        out,
        score_threshold=threshold,
        raw_scores=raw_scores,
        on_image=lambda path, count: say(f"{path}: {count} objects"),
    )
    for path, reason in report["unreadable"].items():
        say(f"Skipped {path}: {reason}")
    say(
        f"{len(files) - len(report['unreadable'])} pictures with "
        f"{len(report['predictions'])} objects, and predictions.json, are in {out}"
    )
