"""`bucketrank table`."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import INTERRUPTED, ConfigOptions, Device, picture_size, say, whole_numbers


class Profile(StrEnum):
    default = "default"
    paper = "paper"


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
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:KEY=VALUE,...",
            help="Rows with these config keys beside those without; may be given several times.",
        ),
    ] = None,
    profile: Annotated[
        Profile, typer.Option(help="paper: exactly the rows of the published table.")
    ] = Profile.default,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the table; left out, results/DATASET.")
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=0, help="GPUs to spread the cells over; left out, all; 0: none."),
    ] = None,
    processes_per_cell: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes of each cell, one a GPU or sharing the CPU; left out, 1, with "
            "--profile paper on GPUs the paper's 4.",
        ),
    ] = None,
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
        typer.Option(
            min=1,
            help="With --timing: pictures a step; left out, the config's. 4 is what each GPU had "
            "in the paper.",
        ),
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
    from bucketed_ranking.benchmarks import table as job
    from bucketed_ranking.benchmarks import training_steps
    from bucketed_ranking.benchmarks.cells import EMBEDDED_DATASET, plan

    console = Console()
    paper = profile is Profile.paper
    name = "timing" if timing else dataset or ("paper" if paper else EMBEDDED_DATASET)
    folder = output or Path("results") / name
    if report_only:
        job.report(folder, console)
        return
    if gpus == 0:
        device = device or "cpu"
    chosen = {
        "detectors": _words(detectors),
        "losses": _words(losses),
        "options": options or [],
        "device": device,
    }
    if timing:
        training_steps.time_detectors(
            folder,
            console,
            batch_size=batch_size,
            image_size=picture_size(image_size),
            steps=steps,
            **chosen,
        )
        job.report(folder, console)
        return
    here = not dry_run and emit_jobs is None
    places = job.choose_places(gpus, processes_per_cell, jobs, device, paper=paper, here=here)
    cells = plan(
        folder,
        dataset=dataset,
        seeds=whole_numbers(seeds, "--seeds", at_least=0),
        variants=_variants(variant or []),
        paper=paper,
        processes=places[0].processes,
        **chosen,
    )
    if dry_run:
        job.show_plan(cells, folder, places, console)
    elif emit_jobs is not None:
        count = job.write_jobs(cells, folder, emit_jobs)
        say(
            f"{count} commands are in {emit_jobs}; afterwards `bucketrank table --report-only "
            f"--output {folder}` collects them."
        )
    else:
        stopped, failed = job.run(cells, folder, places, console)
        if stopped:
            say("Stopped; the cells under way have saved a checkpoint. The same command goes on.")
            raise typer.Exit(INTERRUPTED)
        if failed:
            say(f"{failed} cells failed; the same command tries them again.")
            raise typer.Exit(1)


def _variants(texts: list[str]) -> dict[str, list[str]]:
    """KEY VALUE pairs by name, of "fixed:MODEL.RANKING.SELF_BALANCE=False,SOLVER.BASE_LR=0.1"."""
    from bucketed_ranking.errors import BucketRankError

    variants: dict[str, list[str]] = {}
    for text in texts:
        name, _, rest = text.partition(":")
        pairs = [pair.partition("=") for pair in re.split(r",(?=[A-Z][A-Z0-9_.]*=)", rest)]
        if not re.fullmatch(r"[\w.+]+", name) or not all(k and sign for k, sign, _ in pairs):
            raise BucketRankError(
                "--variant takes NAME:KEY=VALUE,KEY=VALUE, the name in letters, digits and _, such "
                f"as fixed:MODEL.RANKING.SELF_BALANCE=False, not {text!r}."
            )
        if name in variants:
            raise BucketRankError(f"There are two variants called {name!r}; name them differently.")
        variants[name] = [word for key, _, value in pairs for word in (key, value)]
    return variants


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())
