"""`bucketrank doctor`: what is installed, what works, what is missing and how to get it."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Format, OutputFormat, say

if TYPE_CHECKING:
    from bucketed_ranking.doctor import Finding


def doctor(
    output_format: OutputFormat = Format.table,
    install_detectron2: Annotated[
        bool,
        typer.Option(
            "--install-detectron2",
            help="Install Detectron2, and what training needs beside it, into this environment.",
        ),
    ] = False,
    detectron2_from: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="registry (its Python files from the package registry, checked by hash; the "
            "default), official (its repository, which is compiled), a folder, a wheel or an "
            "address for pip. Left out, a Detectron2 that imports is kept.",
        ),
    ] = None,
) -> None:
    """Say what is installed and works, what is missing, and how to get it.

    The exit code is 0 where training is possible, 1 where something it needs is missing.
    """
    from bucketed_ranking import detectron2_setup
    from bucketed_ranking.doctor import collect_report
    from bucketed_ranking.errors import BucketRankError

    if install_detectron2:
        detectron2_setup.install_detectron2(detectron2_from, say)
        return
    if detectron2_from is not None:
        raise BucketRankError("--detectron2-from goes with --install-detectron2.")
    findings = collect_report()
    lacking = [finding.name for finding in findings if finding.prevents_training]
    if output_format is Format.json:
        report = {"ready": not lacking, "findings": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(report, indent=2))
    else:
        _print_table(findings, lacking)
    if lacking:
        raise typer.Exit(1)


def _print_table(findings: list["Finding"], lacking: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "missing": "red", "broken": "red", "absent": "yellow"}
    table = Table("what", "state", "found")
    group = None
    for finding in findings:
        if group not in (None, finding.group):
            table.add_section()
        group = finding.group
        table.add_row(
            finding.name, Text(finding.state, style=styles[finding.state]), Text(finding.detail)
        )
    console = Console()
    console.print(table)
    for finding in findings:
        if finding.remedy:
            console.print(Text(f"{finding.name}: {finding.remedy}"), soft_wrap=True)
    if lacking:
        sentence = f"Training is not possible yet; mend: {', '.join(lacking)}."
        console.print(Text(sentence, style="bold red"))
    else:
        console.print(Text("Training is possible here.", style="bold green"))
