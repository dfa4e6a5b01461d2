"""`bucketrank export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import Weights, say


class ExportFormat(StrEnum):
    safetensors = "safetensors"


def export(
    run_dir: Annotated[Path, typer.Argument(help="A run's folder.")],
    format: Annotated[
        ExportFormat, typer.Option(help="safetensors: weights, config and class names.")
    ] = ExportFormat.safetensors,
    weights: Weights = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; left out, RUN_DIR/WEIGHTS.FORMAT.")
    ] = None,
) -> None:
    """Write a trained detector as a file for other programs."""
    from bucketed_ranking.detectron2_setup import require_detectron2

    require_detectron2("Export")
    from bucketed_ranking.engine import inference
    from bucketed_ranking.engine.export import export_safetensors

    detector = inference.load_detector(str(run_dir), weights=weights, device="cpu")
    path = out or run_dir / f"{Path(detector.weights).stem}.{format}"
    export_safetensors(detector, path)
    say(f"Wrote {detector.describe_weights()} to {path}")
