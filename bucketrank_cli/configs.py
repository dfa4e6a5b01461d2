"""`bucketrank configs`."""

import json
from dataclasses import asdict

import typer

from .options import Format, OutputFormat, say


def configs(output_format: OutputFormat = Format.table) -> None:
    """List the shipped detectors: task, data set, schedule, and AP as published."""
    from rich.console import Console
    from rich.table import Column, Table

    from bucketed_ranking.zoo import list_configs

    summaries = list_configs()
    if output_format is Format.json:
        typer.echo(json.dumps([asdict(summary) for summary in summaries], indent=2, default=str))
        return
    for group in dict.fromkeys((summary.dataset, summary.task) for summary in summaries):
        table = Table(
            Column("config", no_wrap=True),
            # Where a long name leaves little room, nothing is cut off.
            *[Column(title, overflow="fold") for title in ("detector", "schedule", "published")],
            title=f"{group[0]}, {group[1]}",
            title_justify="left",
        )
        for summary in summaries:
            if (summary.dataset, summary.task) == group:
                published = [f"{r.loss} {r.ap:.1f}" for r in summary.published if r.ap is not None]
                table.add_row(
                    summary.name,
                    f"{summary.detector}, {summary.backbone}",
                    f"{summary.iterations} x {summary.batch_size}",
                    "\n".join(published),
                )
        Console().print(table)
    say("schedule: iterations x pictures in a batch")
    say(
        "published: AP (%) of the paper (ECCV 2024), of masks where the task is masks; none of it "
        "was measured here"
    )
    say("Train one: bucketrank train CONFIG --loss brs")
