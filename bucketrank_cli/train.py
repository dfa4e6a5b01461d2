"""`bucketrank train`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .options import ConfigOptions, Device, print_results, say


def train(
    config: Annotated[
        str, typer.Argument(help="A shipped config's name, such as retinanet_tiny, or a YAML file.")
    ],
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
    num_gpus: Annotated[int, typer.Option(min=1, help="GPUs, one process each.")] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of everything random; left out, a random one.")
    ] = None,
    device: Device = None,
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
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Measure how long the losses take, into results.json."),
    ] = False,
) -> None:
    """Train a detector with a ranking loss and evaluate it.

    --epochs, --batch-size, --image-size, --lr and --weights are printed as the config keys that
    they stand for; a KEY VALUE pair at the end of the line wins over them.
    """
    from bucketed_ranking.detectron2_setup import require_detectron2

    require_detectron2("Training")
    from bucketed_ranking.engine import runs, setup
    from bucketed_ranking.engine.plan import plan_training, plan_weights

    cfg = setup.load_config(config, loss=loss, options=options or [], device=device)
    names = setup.choose_datasets(cfg, dataset, train_split, val_split)
    info, _ = setup.configure_datasets(cfg, *names)
    planned = plan_training(
        cfg, info.num_images, epochs=epochs, batch_size=batch_size, image_size=image_size, lr=lr
    )
    if weights is not None:
        planned += plan_weights(cfg, config, weights)
    if planned:
        pairs = zip(planned[::2], planned[1::2], strict=True)
        say(f"As config keys: {' '.join(f'{key} {shlex.quote(value)}' for key, value in pairs)}")
        setup.merge_options(cfg, planned)
        setup.merge_options(cfg, options or [])
    cfg.OUTPUT_DIR = str(output or setup.default_output(config, cfg))
    resume = resume or (auto_resume and runs.is_run(Path(cfg.OUTPUT_DIR)))
    if resume and runs.is_finished(Path(cfg.OUTPUT_DIR), cfg.SOLVER.MAX_ITER):
        say(f"The run in {cfg.OUTPUT_DIR} is finished: there is nothing left to do.")
        print_results(runs.read_json(Path(cfg.OUTPUT_DIR) / runs.RESULTS))
        return
    runs.prepare_run(cfg, resume)
    runs.choose_seed(cfg, seed, resume)
    say(
        f"Training {Path(config).stem} with {cfg.MODEL.RANKING.LOSS} on {names[0]} "
        f"({info.num_images} images, {info.num_annotations} boxes, {info.num_classes} classes), "
        f"device {cfg.MODEL.DEVICE}, seed {cfg.SEED}, into {cfg.OUTPUT_DIR}"
    )
    try:
        results = runs.train(cfg, resume=resume, num_gpus=num_gpus, profile=profile)
    except runs.TrainingInterruptedError as stop:
        say(
            f"Stopped after iteration {stop.iteration}; the checkpoint is saved. The same command "
            "with --resume goes on from there."
        )
        raise typer.Exit(130) from None
    print_results(results)
    if results["unreadable_images"]:
        say(
            f"{results['unreadable_images']} training images could not be read and were replaced "
            f"by others; {cfg.OUTPUT_DIR}/{runs.RECORD} names them."
        )
    say(f"Everything is in {cfg.OUTPUT_DIR}: results.json, log.txt, metrics.json, ...")
