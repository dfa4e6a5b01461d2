"""`bucketrank convert-weights`."""

import json
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import Format, OutputFormat, say


class Layout(StrEnum):
    detectron2 = "detectron2"
    mmdetection = "mmdetection"


def convert_weights(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="Co-DETR's weights, such as published ones.")
    ],
    output: Annotated[Path, typer.Option(help="File to write, for --weights.")],
    config: Annotated[str, typer.Option(help="The detector.")] = "co_deformable_detr_R_50_1x",
    to: Annotated[
        Layout, typer.Option(help="Layout to write; the file has the other.")
    ] = Layout.detectron2,
    output_format: OutputFormat = Format.table,
) -> None:
    """Convert Co-DETR's published weights, which are MMDetection's, for this project, or back."""
    from bucketed_ranking.detectron2_setup import require_detectron2

    require_detectron2("Converting weights")
    from bucketed_ranking.engine import convert
    from bucketed_ranking.modeling.codetr.mmdetection import MATCHED, NOT_NEEDED

    report = convert.convert(source, output, config=config, to=to.value)
    if output_format is Format.json:
        typer.echo(json.dumps([row._asdict() for row in report], indent=2))
        return
    for row in report:
        if row.status not in (MATCHED, NOT_NEEDED):
            names = " = ".join(filter(None, (row.mmdetection, row.detectron2)))
            say(f"{row.status}: {names}: {row.detail}")
    counts = Counter(row.status for row in report).most_common()
    say(f"Wrote {output}; tensors: " + ", ".join(f"{n} {status}" for status, n in counts))
