"""The Python API: train, evaluate, and detect objects. The command line is a thin layer over it.

All of it is imported from the package itself, ``from bucketed_ranking import Detector``. What is
wrong raises :class:`BucketRankError`, whose sentence calls an argument as the command line does:
``--batch-size`` is ``batch_size``.
"""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from .engine import inference, run_folder, runs, setup
from .engine.choice import Choice, choose_config
from .engine.detections import Detections, as_detections, as_picture
from .engine.loggers import send_missing_rows
from .engine.plan import plan_training, plan_weights
from .engine.prediction import Prediction, Progress, find_objects, predict
from .engine.processes import Processes, TrainingInterruptedError, is_first_process, started_outside
from .engine.report import report_training
from .engine.sources import find_sources
from .environment import choose_device
from .errors import BucketRankError
from .results import Evaluation, Training

Options = Mapping[str, object] | Sequence[str]
"""Detectron2 config keys: {"SOLVER.MAX_ITER": 2000}, or the words KEY VALUE one after another."""
Picture = str | Path | np.ndarray | Image.Image

_RANGES = {
    "accumulate": (1, math.inf), "batch_size": (1, math.inf), "epochs": (0.01, 1e9),
    "image_size": (32, 1e6), "lr": (0, 1e9), "machine_rank": (0, math.inf),
    "num_gpus": (1, math.inf), "num_machines": (1, math.inf), "num_processes": (1, math.inf),
    "patience": (0, math.inf), "precision": (0.01, 1), "score_threshold": (0, 1),
    "seed": (0, 2**31 - 1), "workers": (0, math.inf),
}  # fmt: skip
"""The least and the largest value of arguments."""
_EMA_DECAY = 0.9999


class Detector:
    """A trained detector::

        detector = Detector("runs/retinanet_lite0_FPN-brs-cells")
        found = detector("photo.jpg")
        found.boxes, found.class_names, found.scores, found.masks
        found.draw().save("found.png")

    Attributes:
        class_names: what it can find, in the order of class indices.
        threshold: detections that score less are left out.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        weights: str | Path | None = None,
        device: str | None = None,
        threshold: float | None = None,
        precision: float | None = None,
        raw_scores: bool = False,
        options: Options = (),
    ):
        """Load the detector of a run.

        Args:
            run_dir: the output folder of a training.
            weights: "best", "last", or a checkpoint's path or address; None: the best on the
                run's validation data.
            device: "cpu", "cuda", "cuda:1"; None: CUDA where there is a GPU, else the CPU.
            threshold: in 0..1, in the units of the scores; None: that with the best F1 on the
                run's validation data.
            precision: instead, the share of right detections that there shall be on them.
            raw_scores: give the scores of the model, not how likely a detection is right.
            options: config keys to change.

        Raises:
            BucketRankError: there is no such run, or its weights are missing, unsafe or another
                detector's; an argument has no meaning, or no threshold has such a precision.
        """
        _check(score_threshold=threshold, precision=precision)
        if threshold is not None and precision is not None:
            raise BucketRankError("Give either --score-threshold or --precision, not both.")
        self.trained = inference.load_detector(
            str(run_dir), weights=_text(weights), device=device, options=_words(options)
        )
        self.raw_scores = raw_scores
        if threshold is None:
            threshold = inference.best_threshold(
                self.trained, precision=precision, raw_scores=raw_scores
            )
        self.threshold = threshold
        self.class_names: tuple[str, ...] = tuple(self.trained.record["class_names"])

    @property
    def calibrated(self) -> bool:
        """Whether scores are how likely a detection is right, and not the model's own."""
        return self.trained.calibration is not None and not self.raw_scores

    def __repr__(self) -> str:
        return f"Detector({self.trained.describe_weights()}, threshold {self.threshold:.2f})"

    @overload
    def __call__(self, pictures: Picture, *, batch_size: int = 1) -> Detections: ...

    @overload
    def __call__(self, pictures: Iterable[Picture], *, batch_size: int = 1) -> list[Detections]: ...

    def __call__(
        self, pictures: Picture | Iterable[Picture], *, batch_size: int = 1
    ) -> Detections | list[Detections]:
        """Detect objects in a picture, or in each of several.

        Args:
            pictures: paths, PIL images, or arrays of uint8: [H, W, 3] in the order RGB (OpenCV's
                are BGR: `image[:, :, ::-1]`), [H, W, 4] RGBA, or [H, W] grey. A file is turned as
                its EXIF orientation says, other pictures are taken as they are.
            batch_size: so many in a row, if they have one size, are looked at together.

        Raises:
            BucketRankError: a picture cannot be read, or is none.
        """
        _check(batch_size=batch_size)
        one = isinstance(pictures, Picture) or not isinstance(pictures, Iterable)
        given: Iterable[Any] = [pictures] if one else pictures
        found = [
            as_detections(instances, self.class_names, kept)
            for _, kept, instances in find_objects(
                self.trained,
                map(_opened, given),
                score_threshold=self.threshold,
                raw_scores=self.raw_scores,
                batch_size=batch_size,
            )
        ]
        return found[0] if one else found

    def predict(
        self,
        sources: str | Path | Sequence[str | Path],
        out: str | Path,
        *,
        batch_size: int = 1,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Prediction:
        """Draw what is found in pictures, videos and cameras, and write it as COCO results.

        Args:
            sources: see :func:`bucketed_ranking.engine.sources.find_sources`: files, folders,
                patterns, "webcam:0".
            out, batch_size, stop: see :func:`bucketed_ranking.engine.prediction.predict`.
            on_progress: called after each picture and each frame.

        Raises:
            BucketRankError: see there; a source is missing.
        """
        _check(batch_size=batch_size)
        words = [sources] if isinstance(sources, str | Path) else sources
        return predict(
            self.trained,
            find_sources(words),
            Path(out),
            score_threshold=self.threshold,
            raw_scores=self.raw_scores,
            batch_size=batch_size,
            on_progress=on_progress,
            stop=stop,
        )


def evaluate(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    dataset: str | None = None,
    output: str | Path | None = None,
    device: str | None = None,
    options: Options = (),
    say: Callable[[str], None] = print,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measure AP of a trained detector on a data set.

    On its run's validation data the detector is calibrated anew.

    Args:
        source: a run's folder, or a config, which needs `weights` and `dataset`.
        weights: see :class:`Detector`.
        dataset: a data set, or a pair of splits, of which val is taken; None: the run's own.
        output: folder for results.json; None: eval-DATASET-WEIGHTS in the run's folder.
        device: see :class:`Detector`.
        options: config keys to change.
        say: is told what is evaluated.
        on_batch: called after each picture with the number done and the total.

    Raises:
        BucketRankError: what is named is not there, or does not fit together.
    """
    detector, name = inference.load_for_evaluation(
        str(source), dataset, weights=_text(weights), device=device, options=_words(options)
    )
    folder = Path(output) if output else inference.default_output(detector, name)
    say(f"Evaluating {detector.describe_weights()} on {name}")
    return Evaluation.from_results(
        inference.evaluate(detector, name, folder, on_batch=on_batch), folder
    )


def train(
    config: str | Path | None = None,
    *,
    dataset: str | None = None,
    train: str | None = None,
    val: str | None = None,
    loss: str | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    auto_resume: bool = False,
    num_processes: int | None = None,
    num_gpus: int | None = None,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    seed: int | None = None,
    device: str | None = None,
    amp: bool = False,
    accumulate: int | None = None,
    on_nan: str | None = None,
    weights: str | Path | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    lr: float | None = None,
    patience: int | None = None,
    ema: bool = False,
    workers: int | None = None,
    log: Sequence[str] = (),
    profile: bool = False,
    options: Options = (),
    say: Callable[[str], None] = print,
) -> Training | None:
    """Train a detector with a ranking loss and evaluate it.

    What an argument stands for as config keys is told; `options` win over it. Training itself shows
    on the terminal how far it is.

    Args:
        config: a shipped config's name, such as "retinanet_tiny", or a YAML file; None: one is
            chosen for the data set and this machine, with `image_size` and `epochs`.
        dataset: a data set with a train and a val split; None: the config's own.
        train, val: instead, the data sets to train and to evaluate on.
        loss: "score", or a ranking loss: "ap", "rs", "bap", "brs", ...; None: the config's own.
        output: folder of the run; None: runs/CONFIG-LOSS-DATASET.
        resume: go on with the run in it.
        auto_resume: go on with the run in it if there is one, else start.
        num_processes: on this machine, a GPU each, or on the CPU.
        num_gpus: the same, on GPUs alone.
        num_machines, machine_rank, dist_url: as :class:`Processes` has them.
        seed: of everything random; None: a random one.
        device: see :class:`Detector`.
        amp: mixed precision: float16 on CUDA, else bfloat16.
        accumulate: run each batch in so many parts, in the memory of one.
        on_nan: where a loss or gradient is not finite: "stop", or "skip" that step.
        weights: "imagenet", "coco", "none", or a file or address; None: the config's own.
        epochs: how often every picture is seen; warm-up and steps follow.
        batch_size: pictures a step; the learning rate follows.
        image_size: of the shorter side, in pixels.
        lr: learning rate; None: it fits the batch.
        patience: stop after so many evaluations without a better AP; 0: never.
        ema: evaluate and keep a moving average of the weights.
        workers: processes that load pictures, for each that trains.
        log: who gets the metrics too: "wandb", "mlflow".
        profile: measure how long the losses take.
        options: config keys to change.
        say: is told what is chosen, and what is trained on what.

    Returns:
        None on all but the first of several processes or machines.

    Raises:
        BucketRankError: see above and :func:`bucketed_ranking.engine.runs.train`.
        TrainingInterruptedError: it was stopped; a checkpoint was saved.
    """
    _check(
        num_processes=num_processes, num_gpus=num_gpus, num_machines=num_machines,
        machine_rank=machine_rank, seed=seed, accumulate=accumulate, epochs=epochs,
        batch_size=batch_size, image_size=image_size, lr=lr, patience=patience, workers=workers,
    )  # fmt: skip
    chosen = None
    if config is None:
        chosen = _choose_config(dataset, train, val, device)
        config = chosen.config
        image_size, epochs = image_size or chosen.image_size, epochs or chosen.epochs
    config, words = str(config), _words(options)
    cfg = setup.load_config(config, loss=loss, options=words, device=device)
    names = setup.choose_datasets(cfg, dataset, train, val)
    info, _ = setup.configure_datasets(cfg, *names)
    planned = plan_training(
        cfg, info.num_images, epochs=epochs, batch_size=batch_size, image_size=image_size, lr=lr
    )
    planned += plan_weights(cfg, config, str(weights)) if weights is not None else []
    keys = {
        "SOLVER.AMP.ENABLED": amp or None,
        "SOLVER.ACCUMULATE": accumulate,
        "SOLVER.ON_NAN": on_nan,
        "SOLVER.PATIENCE": patience,
        "SOLVER.EMA_DECAY": (cfg.SOLVER.EMA_DECAY or _EMA_DECAY) if ema else None,
        "DATALOADER.NUM_WORKERS": workers,
        "LOGGERS": json.dumps(log) if log else None,
    }
    planned += _words({key: value for key, value in keys.items() if value is not None})
    setup.merge_options(cfg, planned)
    setup.merge_options(cfg, words)
    setup.check_values(cfg)
    setup.datasets_of(cfg)  # raises where the options name none or several
    folder = Path(output) if output else setup.default_output(config, cfg)
    cfg.OUTPUT_DIR = str(folder)
    processes = Processes(
        num_gpus or num_processes or 1, num_machines, machine_rank, dist_url, num_gpus is not None
    )
    cfg = runs.scale_to_processes(cfg, processes)
    resume = resume or (auto_resume and run_folder.is_run(folder))
    done = resume and run_folder.is_finished(folder, cfg.SOLVER.MAX_ITER, cfg.SOLVER.PATIENCE)
    if not is_first_process(processes):
        # Of several that were started by hand, by torchrun or by Slurm, the first one speaks.
        if not done:
            runs.train(cfg, processes=processes, profile=profile)
        return None
    if chosen:
        plain = {"--image-size": chosen.image_size, "--epochs": chosen.epochs}
        shown = [f"{name} {value}" for name, value in plain.items() if value is not None]
        say(f"Chose {' '.join([config, *shown])}, because {'; '.join(chosen.reasons)}.")
    if planned:
        pairs = zip(planned[::2], planned[1::2], strict=True)
        say(f"As config keys: {' '.join(f'{key} {shlex.quote(value)}' for key, value in pairs)}")
    if done:
        if cfg.LOGGERS:
            say(f"The run in {folder} is finished: what loggers lack of it is sent.")
            send_missing_rows(folder, cfg.LOGGERS)
        else:
            say(f"The run in {folder} is finished: there is nothing left to do.")
        return Training.from_results(run_folder.read_json(folder / run_folder.RESULTS), folder)
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
    except TrainingInterruptedError as stopped:
        say(
            f"Stopped after iteration {stopped.iteration}; the checkpoint is saved. The same again "
            "with --resume goes on from there."
        )
        raise
    if cfg.SOLVER.EMA_DECAY:
        say("Evaluated, and kept in the checkpoints, are averaged weights (SOLVER.EMA_DECAY).")
    report_training(folder)
    return Training.from_results(results, folder)


def _choose_config(
    dataset: str | None, train: str | None, val: str | None, device: str | None
) -> Choice:
    if dataset is None and train is None:
        raise BucketRankError(
            "Name a config (`bucketrank configs` lists them), or a data set that one is to be "
            "chosen for (--dataset NAME)."
        )
    names = setup.choose_datasets(setup.default_config(), dataset, train, val)
    return choose_config(names[0], choose_device(device))


def _check(**arguments: float | None) -> None:
    """BucketRankError if an argument that is given, not None, is no number in its range."""
    for name, value in arguments.items():
        low, high = _RANGES[name]
        if value is not None and not (isinstance(value, Real) and low <= value <= high):
            range_ = f"{low} or more" if high == math.inf else f"from {low} to {high:g}"
            option = f"--{name.replace('_', '-')}"
            raise BucketRankError(f"{option} is {value!r}; it must be {range_}.")


def _words(options: Options) -> list[str]:
    """As the words KEY VALUE one after another."""
    if isinstance(options, Mapping):
        return [str(word) for pair in options.items() for word in pair]
    return list(options)


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


def _opened(picture: Picture) -> tuple[Image.Image, Path | Image.Image]:
    """A picture, and what is kept of it to be drawn: not the pixels of a file."""
    opened = as_picture(picture)
    return opened, Path(picture) if isinstance(picture, str | Path) else opened
