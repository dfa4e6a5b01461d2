"""`bucketrank train`."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import INTERRUPTED, ConfigOptions, Device, print_results, say

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")
"""A config key, as no config is called."""


class OnNan(StrEnum):
    stop = "stop"
    skip = "skip"


class Logger(StrEnum):
    wandb = "wandb"
    mlflow = "mlflow"


def train(
    config: Annotated[
        str | None,
        typer.Argument(
            help="A shipped config's name, such as retinanet_tiny, or a YAML file; left out, one "
            "is chosen for the data set and this machine."
        ),
    ] = None,
    options: ConfigOptions = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Data set with a train and a val split; left out, the config's own."),
    ] = None,
    train_split: Annotated[
        str | None, typer.Option("--train", help="Data set to train on; goes with --val.")
    ] = None,
    val_split: Annotated[
        str | None, typer.Option("--val", help="Data set to evaluate on; goes with --train.")
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="score, or a ranking loss: ap, rs, bap, brs, ... (see README)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; left out, runs/CONFIG-LOSS-DATASET."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in it.")] = False,
    auto_resume: Annotated[
        bool,
        typer.Option("--auto-resume", help="Go on with the run in it if there is one, else start."),
    ] = False,
    num_processes: Annotated[
        int | None,
        typer.Option(help="Processes on this machine: a GPU each, or on the CPU."),
    ] = None,
    num_gpus: Annotated[int | None, typer.Option(help="As --num-processes, on GPUs alone.")] = None,
    num_machines: Annotated[
        int, typer.Option(help="Machines; the same command runs on each of them.")
    ] = 1,
    machine_rank: Annotated[int, typer.Option(help="This machine's, from 0.")] = 0,
    dist_url: Annotated[
        str, typer.Option(help="Where machines meet, such as tcp://10.0.0.1:29500.")
    ] = "auto",
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of everything random; else a random one."),
    ] = None,
    device: Device = None,
    amp: Annotated[
        bool, typer.Option("--amp", help="Mixed precision: float16 on CUDA, else bfloat16.")
    ] = False,
    accumulate: Annotated[
        int | None,
        typer.Option(help="Run each batch in so many parts, in the memory of one."),
    ] = None,
    on_nan: Annotated[
        OnNan | None,
        typer.Option(help="Where a loss or gradient is not finite: stop, or skip that step."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="imagenet, coco (Detectron2's model zoo), none, or a file or URL; left out, the "
            "config's own."
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="How often every picture is seen; warm-up, steps follow."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures a step; the learning rate follows.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Shorter side of the pictures, in pixels.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate; left out, it fits the batch.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after so many evaluations without a better AP; 0: never."),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Evaluate and keep a moving average of the weights.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes that load pictures, for each that trains.")
    ] = None,
    log: Annotated[
        list[Logger] | None,
        typer.Option(help="Who gets the metrics too, beside TensorBoard; may be repeated."),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Measure how long the losses take, into results.json."),
    ] = False,
) -> None:
    """Train a detector with a ranking loss and evaluate it.

    Without CONFIG one is chosen, with --image-size and --epochs, and it is said why. --epochs,
    --batch-size, --image-size, --lr, --weights, --patience, --workers and others are printed as the
    config keys that they stand for; a KEY VALUE pair at the end of the line wins over them.
    """
    from bucketed_ranking.detectron2_setup import require_detectron2

    require_detectron2("Training")
    import bucketed_ranking

    options = options or []
    if config is not None and _KEY.fullmatch(config) and not Path(config).exists():
        config, options = None, [config, *options]  # no config, but KEY VALUE pairs
    try:
        trained = bucketed_ranking.train(
            config, dataset=dataset, train=train_split, val=val_split, loss=loss, output=output,
            resume=resume, auto_resume=auto_resume, num_processes=num_processes,
            num_gpus=num_gpus, num_machines=num_machines, machine_rank=machine_rank,
            dist_url=dist_url, seed=seed, device=device, amp=amp, accumulate=accumulate,
            on_nan=on_nan, weights=weights, epochs=epochs, batch_size=batch_size,
            image_size=image_size, lr=lr, patience=patience, ema=ema, workers=workers,
            log=log or (), profile=profile, options=options, say=say,
        )  # fmt: skip
    except bucketed_ranking.TrainingInterruptedError:
        raise typer.Exit(INTERRUPTED) from None
    if trained is None:  # another process or machine is the first one
        return
    print_results(trained)
    if trained.best:
        say(
            f"Best AP: {trained.best_ap:.1f} after {trained.best['iterations']} iterations "
            "(model_best.pth), which eval and predict take unless told otherwise (--weights last)."
        )
    if trained.unreadable_images:
        say(
            f"{trained.unreadable_images} training images could not be read and were replaced by "
            f"others; {trained.folder}/run.json names them."
        )
    page = f"{trained.report.name}, " if trained.report else ""
    say(f"Everything is in {trained.folder}: {page}results.json, log.txt, metrics.json, ...")
