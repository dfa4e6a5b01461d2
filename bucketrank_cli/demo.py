"""`bucketrank demo`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import ConfigOptions, Device, say

LOSSES = ("brs", "score")


def demo(
    options: ConfigOptions = None,
    output: Annotated[Path, typer.Option(help="Folder of the two runs.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of both runs.")] = 1,
    device: Device = None,
) -> None:
    """Train a tiny RetinaNet with BRS and with focal loss, and compare them."""
    from rich.console import Console
    from rich.table import Table

    from bucketed_ranking.console import number
    from bucketed_ranking.detectron2_setup import require_detectron2

    require_detectron2("The demo")
    from bucketed_ranking.engine import demo as job

    results = job.train_losses(LOSSES, output, seed=seed, device=device, options=options or [])
    table = Table(title="RetinaNet, tiny, on shapes_val", title_justify="left")
    for name in ("loss", "AP (%)", "AP50 (%)", "s / iteration", "loss ms / iteration"):
        table.add_column(name, justify="left" if name == "loss" else "right")
    for loss, result in results.items():
        table.add_row(
            loss,
            number(result["bbox"]["AP"]),
            number(result["bbox"]["AP50"]),
            number(result["seconds_per_iteration"], 3),
            number(result["loss_ms_per_iteration"], 1),
        )
    Console().print(table)
    picture = job.draw_comparison(LOSSES, output)
    say(f"Detections beside the ground truth: {picture}")
    say(
        "Next: your own data, `bucketrank dataset add NAME FOLDER --val-fraction 0.2` (labels of "
        "YOLO, VOC, COCO, ...) and `bucketrank train --dataset NAME`."
    )
