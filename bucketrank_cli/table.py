"""`bucketrank table`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import ConfigOptions, Device, say


def table(
    options: ConfigOptions = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Data set with a train and a val split; left out, the embedded one."),
    ] = None,
    detectors: Annotated[
        str | None,
        typer.Option(
            help="Configs by commas, * and ? allowed; left out, the full-size ones made for the "
            "data set, else retinanet_tiny and faster_rcnn_tiny."
        ),
    ] = None,
    losses: Annotated[
        str | None, typer.Option(help="By commas; left out, score,ap,bap,rs,brs,rs-exact.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds by commas.")] = "1",
    profile: Annotated[
        str, typer.Option(help="paper: exactly the rows of the published table.")
    ] = "default",
    output: Annotated[
        Path | None, typer.Option(help="Folder of the table; left out, results/DATASET.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs to spread the cells over; left out, all.")
    ] = None,
    gpus_per_cell: Annotated[int, typer.Option(min=1, help="GPUs of each cell.")] = 1,
    jobs: Annotated[
        int, typer.Option(min=1, help="Without GPUs: cells at a time, sharing the cores.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and the estimated time, and leave.")
    ] = False,
    emit_jobs: Annotated[
        Path | None,
        typer.Option(help="Write the commands, one a line, into this file instead of running."),
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write the report of what is in the folder.")
    ] = False,
    timing: Annotated[
        bool,
        typer.Option(
            "--timing",
            help="Time training steps of full-size detectors with random weights on made-up "
            "pictures instead: no data set is needed.",
        ),
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="With --timing: pictures a step; left out, the config's."),
    ] = None,
    image_size: Annotated[
        str, typer.Option(help="With --timing: height x width of the pictures.")
    ] = "800x1333",
    steps: Annotated[int, typer.Option(min=1, help="With --timing: timed steps.")] = 10,
    device: Device = None,
) -> None:
    """Train a grid of detectors x losses x seeds, and report on it; finished cells are kept."""
    from rich.console import Console

    from bucketed_ranking.detectron2_setup import require_detectron2

    require_detectron2("Training a table")
    from bucketed_ranking.tables import job
    from bucketed_ranking.tables.grid import Request, default_output
    from bucketed_ranking.tables.timing import DEFAULT_OUTPUT, TimingRequest, parse_size

    console = Console()
    folder = output or (DEFAULT_OUTPUT if timing else default_output(dataset, profile))
    if report_only:
        job.report(folder, console)
        return
    if timing:
        request = TimingRequest(
            output=folder,
            detectors=_words(detectors),
            losses=_words(losses),
            batch_size=batch_size,
            image_size=parse_size(image_size),
            steps=steps,
            options=tuple(options or ()),
            device=device,
        )
        job.run_timing(request, console)
        return
    request = Request(
        output=folder,
        dataset=dataset,
        detectors=_words(detectors),
        losses=_words(losses),
        seeds=job.parse_seeds(seeds),
        profile=profile,
        options=tuple(options or ()),
        device=device,
    )
    here = not dry_run and emit_jobs is None
    room = job.choose_room(gpus, gpus_per_cell, jobs, device, here=here)
    if dry_run:
        job.show_plan(request, room, console)
    elif emit_jobs is not None:
        count = job.write_jobs(request, room, emit_jobs)
        say(
            f"{count} commands are in {emit_jobs}; afterwards `bucketrank table --report-only "
            f"--output {folder}` collects them."
        )
    else:
        outcome = job.run(request, room, console)
        if outcome.stopped:
            say("Stopped; the cells under way have saved a checkpoint. The same command goes on.")
            raise typer.Exit(130)
        if outcome.failed:
            say(f"{outcome.failed} cells failed; the same command tries them again.")
            raise typer.Exit(1)


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())
