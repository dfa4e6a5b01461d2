"""`bucketrank export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import Weights, picture_size, say


class ExportFormat(StrEnum):
    safetensors = "safetensors"
    onnx = "onnx"
    torchscript = "torchscript"


def export(
    run_dir: Annotated[Path, typer.Argument(help="A run's folder.")],
    format: Annotated[
        ExportFormat,
        typer.Option(
            help="safetensors: weights, config and class names; onnx, torchscript: all of the "
            "detector, from the picture to calibrated boxes."
        ),
    ] = ExportFormat.safetensors,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Of onnx and torchscript: the only height and width that the file takes, such as "
            "480x640; left out, pictures of any size, which it resizes as `predict` does.",
        ),
    ] = None,
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
    from bucketed_ranking.errors import BucketRankError

    size = picture_size(image_size) if image_size else None
    if size and format == ExportFormat.safetensors:
        raise BucketRankError("--image-size goes with --format onnx or torchscript.")
    detector = inference.load_detector(str(run_dir), weights=weights, device="cpu")
    path = out or run_dir / f"{Path(detector.weights).stem}.{format}"
    if format == ExportFormat.safetensors:
        export_safetensors(detector, path)
    else:
        from bucketed_ranking.engine.traced_export import export_traced

        checked = export_traced(detector, path, format.value, size)
        say(
            f"Checked: {checked.describe()}"
            if checked
            else "The file was not checked: that needs onnxruntime (`pip install onnxruntime`)."
        )
    say(f"Wrote {detector.describe_weights()} to {path}")
