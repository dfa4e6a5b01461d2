"""`bucketrank train`."""

import json
import re
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import ConfigOptions, Device, print_results, say

if TYPE_CHECKING:
    from bucketed_ranking.engine.choice import Choice

_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")
"""A config key, as no config is called."""

_STOPPED = 130
"""Exit code of a training that was stopped, as shells give it for Ctrl-C."""


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
        typer.Option(min=1, help="Processes on this machine: a GPU each, or on the CPU."),
    ] = None,
    num_gpus: Annotated[
        int | None, typer.Option(min=1, help="As --num-processes, on GPUs alone.")
    ] = None,
    num_machines: Annotated[
        int, typer.Option(min=1, help="Machines; the same command runs on each of them.")
    ] = 1,
    machine_rank: Annotated[int, typer.Option(min=0, help="This machine's, from 0.")] = 0,
    dist_url: Annotated[
        str, typer.Option(help="Where machines meet, such as tcp://10.0.0.1:29500.")
    ] = "auto",
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**31 - 1, help="Seed of everything random; else a random one."),
    ] = None,
    device: Device = None,
    amp: Annotated[
        bool, typer.Option("--amp", help="Mixed precision: float16 on CUDA, else bfloat16.")
    ] = False,
    accumulate: Annotated[
        int | None,
        typer.Option(min=1, help="Run each batch in so many parts, in the memory of one."),
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
        typer.Option(min=0.01, help="How often every picture is seen; warm-up, steps follow."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures a step; the learning rate follows.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=32, help="Shorter side of the pictures, in pixels.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(min=0.0, help="Learning rate; left out, it fits the batch.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(min=0, help="Stop after so many evaluations without a better AP; 0: never."),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Evaluate and keep a moving average of the weights.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that load pictures, for each that trains.")
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
    from bucketed_ranking.engine import run_folder, runs, setup
    from bucketed_ranking.engine.plan import plan_training, plan_weights
    from bucketed_ranking.engine.processes import Processes, is_first_process, started_outside

    options = options or []
    if config is not None and _KEY.fullmatch(config) and not Path(config).exists():
        config, options = None, [config, *options]  # no config, but KEY VALUE pairs
    chosen = None
    if config is None:
        chosen = _choose_config(dataset, train_split, val_split, device)
        config = chosen.config
        image_size, epochs = image_size or chosen.image_size, epochs or chosen.epochs
    cfg = setup.load_config(config, loss=loss, options=options, device=device)
    names = setup.choose_datasets(cfg, dataset, train_split, val_split)
    info, _ = setup.configure_datasets(cfg, *names)
    planned = plan_training(
        cfg, info.num_images, epochs=epochs, batch_size=batch_size, image_size=image_size, lr=lr
    )
    planned += plan_weights(cfg, config, weights) if weights is not None else []
    planned += _options(
        {
            "SOLVER.AMP.ENABLED": amp or None,
            "SOLVER.ACCUMULATE": accumulate,
            "SOLVER.ON_NAN": on_nan,
            "SOLVER.PATIENCE": patience,
            "SOLVER.EMA_DECAY": (cfg.SOLVER.EMA_DECAY or 0.9999) if ema else None,
            "DATALOADER.NUM_WORKERS": workers,
            "LOGGERS": json.dumps(log) if log else None,
        }
    )
    setup.merge_options(cfg, planned)
    setup.merge_options(cfg, options)
    setup.check_values(cfg)
    folder = output or setup.default_output(config, cfg)
    cfg.OUTPUT_DIR = str(folder)
    processes = Processes(
        num_gpus or num_processes or 1, num_machines, machine_rank, dist_url, num_gpus is not None
    )
    cfg = runs.scale_to_processes(cfg, processes)
    if not is_first_process(processes):
        # Of several that were started by hand, by torchrun or by Slurm, the first one speaks.
        try:
            runs.train(cfg, processes=processes, profile=profile)
        except runs.TrainingInterruptedError:
            raise typer.Exit(_STOPPED) from None
        return
    if chosen:
        plain = {"--image-size": chosen.image_size, "--epochs": chosen.epochs}
        words = [f"{name} {value}" for name, value in plain.items() if value is not None]
        say(f"Chose {' '.join([config, *words])}, because {'; '.join(chosen.reasons)}.")
    if planned:
        pairs = zip(planned[::2], planned[1::2], strict=True)
        say(f"As config keys: {' '.join(f'{key} {shlex.quote(value)}' for key, value in pairs)}")
    resume = resume or (auto_resume and run_folder.is_run(folder))
    if resume and run_folder.is_finished(folder, cfg.SOLVER.MAX_ITER, cfg.SOLVER.PATIENCE):
        say(f"The run in {folder} is finished: there is nothing left to do.")
        print_results(run_folder.read_json(folder / run_folder.RESULTS))
        return
    run_folder.choose_seed(cfg, seed, resume)
    total = (started_outside() or processes).total
    together = f", {total} processes" if total > 1 else ""
    sentence = (
        f"Training {Path(config).stem} with {cfg.MODEL.RANKING.LOSS} on {names[0]} "
        f"({info.num_images} images, {info.num_annotations} boxes, {info.num_classes} classes), "
        f"device {cfg.MODEL.DEVICE}{together}, seed {cfg.SEED}, into {folder}"
    )
    try:
        results = runs.train(
            cfg,
            resume=resume,
            processes=processes,
            profile=profile,
            announce=lambda: say(sentence),
        )
    except runs.TrainingInterruptedError as stop:
        say(
            f"Stopped after iteration {stop.iteration}; the checkpoint is saved. The same command "
            "with --resume goes on from there."
        )
        raise typer.Exit(_STOPPED) from None
    print_results(results)
    if cfg.SOLVER.EMA_DECAY:
        say("Evaluated, and kept in the checkpoints, are averaged weights (SOLVER.EMA_DECAY).")
    if best := results["best"]:
        (value,) = [value for key, value in best.items() if key.endswith("/AP")]
        say(
            f"Best AP: {value:.1f} after {best['iterations']} iterations (model_best.pth), which "
            "eval and predict take unless told otherwise (--weights last)."
        )
    if results["unreadable_images"]:
        say(
            f"{results['unreadable_images']} training images could not be read and were replaced "
            f"by others; {folder}/{run_folder.RECORD} names them."
        )
    say(f"Everything is in {folder}: results.json, log.txt, metrics.json, ...")


def _choose_config(
    dataset: str | None, train_split: str | None, val_split: str | None, device: str | None
) -> "Choice":
    from bucketed_ranking.engine import setup
    from bucketed_ranking.engine.choice import choose_config
    from bucketed_ranking.environment import choose_device
    from bucketed_ranking.errors import BucketRankError

    if dataset is None and train_split is None:
        raise BucketRankError(
            "Name a config (`bucketrank configs` lists them), or a data set that one is to be "
            "chosen for (--dataset NAME)."
        )
    train, _ = setup.choose_datasets(setup.default_config(), dataset, train_split, val_split)
    return choose_config(train, choose_device(device))


def _options(given: dict[str, object]) -> list[str]:
    """KEY VALUE pairs for the keys that are given, not None."""
    pairs = [(key, str(value)) for key, value in given.items() if value is not None]
    return [word for pair in pairs for word in pair]
