"""Training runs: their folder, their record, starting, resuming and finishing them."""

import hashlib
import json
import logging
import random
import resource
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from rich.console import Console
from torch.multiprocessing import ProcessRaisedException

from ..config import ranking_scope
from ..data.catalog import category_ids, register
from ..data.registry import find_dataset
from ..environment import device_name, git_commit, installed_versions
from ..errors import BucketRankError
from .evaluation import write_results
from .hooks import WARM_UP_ITERATIONS, TrainingInterruptedError
from .loss_profiler import summarise_samples
from .setup import default_config, flatten
from .step import check_step_config
from .trainer import Trainer

logger = logging.getLogger(__name__)

RECORD = "run.json"
RESULTS = "results.json"
# What is in the folder of a run that was stopped before it had begun.
_WRITTEN_FIRST = {"config.yaml", "log.txt"}
_DIVERGED = (
    "Lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or clip gradients "
    "(SOLVER.CLIP_GRADIENTS.ENABLED True)."
)
_RECORDED_PACKAGES = ("torchvision", "detectron2", "numpy", "faster-coco-eval")
_LOGGERS = ("detectron2", "fvcore", "bucketed_ranking", "py.warnings")


def is_run(folder: Path) -> bool:
    """Whether `folder` is the output folder of a run."""
    return (folder / RECORD).is_file() and (folder / "config.yaml").is_file()


def read_json(path: Path) -> dict[str, Any]:
    """The content of run.json (what was run, on what, how it ended) or results.json."""
    return json.loads(path.read_text())


def prepare_run(cfg: CfgNode, resume: bool) -> Path:
    """Check the output folder of a run before anything is written to it.

    Raises:
        BucketRankError: a new run would write into a folder that holds something, or a run to
            be resumed is not there or was started with another detector, loss or data set.
    """
    output = Path(cfg.OUTPUT_DIR)
    if resume:
        if not is_run(output):
            raise BucketRankError(
                f"There is no run to resume in {output}; leave --resume out to start one."
            )
        before = read_json(output / RECORD)["identity"]
        for key, value in _identity(cfg).items():
            if before[key] != value:
                raise BucketRankError(
                    f"The run in {output} was started with {key} {before[key]!r}, not {value!r}; "
                    "resume it with the same arguments, or choose another --output."
                )
    elif output.exists() and {path.name for path in output.iterdir()} - _WRITTEN_FIRST:
        raise BucketRankError(
            f"The output folder {output} is not empty; add --resume to go on with the run in it, "
            "or choose another with --output."
        )
    return output


def _identity(cfg: CfgNode) -> dict[str, Any]:
    return {
        "MODEL.META_ARCHITECTURE": cfg.MODEL.META_ARCHITECTURE,
        "MODEL.RANKING.LOSS": cfg.MODEL.RANKING.LOSS,
        "DATASETS.TRAIN": list(cfg.DATASETS.TRAIN),
        "DATASETS.TEST": list(cfg.DATASETS.TEST),
    }


def is_finished(run_dir: Path, max_iter: int) -> bool:
    """Whether a run has been trained for `max_iter` iterations and evaluated."""
    if not is_run(run_dir):
        return False
    record = read_json(run_dir / RECORD)
    return record["state"] == "finished" and record["iterations"] >= max_iter


def images_per_ranking(cfg: CfgNode, processes: int) -> int:
    """How many images one ranking spans: those of a forward pass, of one process or of all.

    It decides what is optimised, and how long a loop takes.
    """
    images = cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATE
    return images if ranking_scope(cfg) == "global" else images // processes


def config_hash(cfg: CfgNode, processes: int = 1) -> str:
    """A short hash of what decides a run's result but its seed.

    It is over the keys that differ from their defaults, so that a new key changes no hash, and over
    the images of a ranking where several processes share a batch. The folder and the device are
    left out.
    """
    defaults = default_config()
    cfg = cfg.clone()
    for given in (cfg, defaults):
        given.OUTPUT_DIR, given.SEED, given.MODEL.DEVICE = "", 0, ""
    before = flatten(defaults)
    changed = [
        f"{key}: {value!r}"
        for key, value in sorted(flatten(cfg).items())
        if key not in before or repr(before[key]) != repr(value)
    ]
    if images_per_ranking(cfg, processes) != cfg.SOLVER.IMS_PER_BATCH:
        changed.append(f"images_per_ranking: {images_per_ranking(cfg, processes)}")
    return hashlib.sha256("\n".join(changed).encode()).hexdigest()[:12]


def choose_seed(cfg: CfgNode, seed: int | None, resume: bool = False) -> None:
    """Set cfg.SEED: that of the run to resume, else the given one, the config's, a random one.

    Raises:
        BucketRankError: another seed is given than the run to resume has.
    """
    output = Path(cfg.OUTPUT_DIR)
    if resume and is_run(output):
        started_with = read_json(output / RECORD)["seed"]
        if seed not in (None, started_with):
            raise BucketRankError(
                f"The run in {output} was started with seed {started_with}, not {seed}; leave "
                "--seed out to resume it."
            )
        cfg.SEED = started_with
    elif seed is not None:
        cfg.SEED = seed
    elif cfg.SEED < 0:
        cfg.SEED = random.SystemRandom().randrange(2**31)


def train(
    cfg: CfgNode, *, resume: bool = False, num_gpus: int = 1, profile: bool = False
) -> dict[str, Any]:
    """Train a detector, evaluate it, and leave everything in cfg.OUTPUT_DIR.

    The folder holds config.yaml, log.txt, metrics.json, TensorBoard events, checkpoints,
    run.json (what was run, on what, how it ended) and results.json (AP and timings).

    Args:
        cfg: see :func:`load_config` and :func:`configure_datasets`; SEED must be set.
        resume: go on with the run in cfg.OUTPUT_DIR.
        num_gpus: processes, one a GPU; one process on the CPU.
        profile: measure how long the losses take; see :mod:`.loss_profiler`.

    Returns:
        The content of results.json.

    Raises:
        BucketRankError: the folder is not fit (see :func:`prepare_run`), or training diverged.
        TrainingInterruptedError: the user or the system stopped it; a checkpoint was saved.
    """
    check_step_config(cfg, num_gpus)
    output = prepare_run(cfg, resume)
    if num_gpus > 1 and torch.cuda.device_count() < num_gpus:
        raise BucketRankError(
            f"--num-gpus is {num_gpus}, but this machine has {torch.cuda.device_count()}."
        )
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(cfg.dump())
    try:
        launch(_train_worker, num_gpus, dist_url="auto", args=(cfg, resume, profile))
    except (FloatingPointError, ProcessRaisedException) as error:
        # With several processes the exception itself stays in the one that raised it.
        record = read_json(output / RECORD)
        if record["state"] == "interrupted":
            raise TrainingInterruptedError(record["iterations"]) from error
        if record["state"] == "diverged":
            raise BucketRankError(
                f"{record['error']} The log is in {output / 'log.txt'}."
            ) from error
        raise
    return read_json(output / RESULTS)


def describe_run(cfg: CfgNode, processes: int) -> dict[str, Any]:
    """What a record says of how and on what a config is run, from now on."""
    return {
        "config_hash": config_hash(cfg, processes),
        "device": cfg.MODEL.DEVICE,
        "device_name": device_name(cfg.MODEL.DEVICE),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "images_per_ranking": images_per_ranking(cfg, processes),
        "started": _now(),
        "versions": installed_versions(*_RECORDED_PACKAGES),
        "git_commit": git_commit(),
    }


def _train_worker(cfg: CfgNode, resume: bool, profile: bool) -> None:
    output = Path(cfg.OUTPUT_DIR)
    datasets = {name: register(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    with run_logging(output):
        seed_all_rng(cfg.SEED + comm.get_rank())
        logger.info("Environment:\n%s", collect_env_info())
        for info in datasets.values():
            logger.info("%s", info)  # with what was skipped, and how often
        record = {
            "identity": _identity(cfg),
            "command": sys.argv,
            "seed": cfg.SEED,
            **describe_run(cfg, comm.get_world_size()),
            "class_names": list(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes),
            "category_ids": category_ids(cfg.DATASETS.TRAIN[0]),
            "datasets": {name: info.as_dict() for name, info in datasets.items()},
            "entries": {name: find_dataset(name).as_dict() for name in datasets},
            "iterations": 0,
            "state": "training",
        }
        write_results(output / RECORD, record)
        console = Console() if comm.is_main_process() else None
        trainer = Trainer(cfg, console, profile=profile)
        trainer.resume_or_load(resume)
        try:
            trainer.train()
            record["state"] = "finished"
        except FloatingPointError as error:
            record["state"] = "diverged"
            record["error"] = (
                f"Training diverged at iteration {trainer.iter}: {_one_line(error)} {_DIVERGED}"
            )
            raise
        except (TrainingInterruptedError, KeyboardInterrupt):
            record["state"] = "interrupted"
            raise
        except Exception as error:
            record["state"] = "failed"
            record["error"] = f"{type(error).__name__}: {_one_line(error)}"
            raise
        finally:
            record["iterations"] = min(trainer.iter, trainer.max_iter)
            record["ended"] = _now()
            record["skipped_iterations"] = trainer.skipped
            record["unreadable_images"] = sorted(trainer.unreadable_images)
            write_results(output / RECORD, record)
        write_results(output / RESULTS, _results(cfg, trainer))


def _results(cfg: CfgNode, trainer: Trainer) -> dict[str, Any]:
    seconds = median_seconds(trainer.storage, trainer.start_iter + WARM_UP_ITERATIONS)
    times = summarise_samples(trainer.loss_profiler.samples if trainer.loss_profiler else [])
    latest = trainer.storage.latest()
    return {
        "loss": cfg.MODEL.RANKING.LOSS,
        "dataset": cfg.DATASETS.TEST[-1],
        "iterations": trainer.max_iter,
        "seconds_per_iteration": seconds,
        "images_per_ranking": images_per_ranking(cfg, comm.get_world_size()),
        "loss_ms_per_iteration": times["loss_ms"],
        "classification_loss_ms_per_iteration": times["classification_loss_ms"],
        "peak_memory_bytes": _peak_memory(cfg.MODEL.DEVICE),
        "images_per_second": cfg.SOLVER.IMS_PER_BATCH / seconds if seconds else None,
        "final_losses": {k: float(v) for k, (v, _) in latest.items() if k.startswith("loss_")},
        "unreadable_images": len(trainer.unreadable_images),
        **trainer._last_eval_results,
    }


def median_seconds(storage: EventStorage, first: int) -> float | None:
    """Median of Detectron2's time of a step, data included, evaluation and saving left out, over
    the iterations from `first` on; None where there were none."""
    history = storage.histories().get("time")
    measured = [seconds for seconds, i in history.values() if i >= first] if history else []
    return statistics.median(measured) if measured else None


def _peak_memory(device: str) -> int:
    """Of the GPU's memory what tensors took at most; on the CPU the process' resident memory."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") + "."


def _now() -> str:
    """The time as records have it: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _concerns_the_user(record: logging.LogRecord) -> bool:
    """Whether a warning belongs on the terminal and not in the log alone.

    Exceptions reach the user as one sentence. Detectron2 and Python warn of what is normal here,
    such as category ids that are not 1, 2, 3, ...; what is warned of in loading weights matters.
    """
    return record.exc_info is None and not record.name.startswith(("detectron2", "py.warnings"))


@contextmanager
def run_logging(output: Path) -> Iterator[None]:
    """Log to `output`/log.txt, and warnings to the terminal, while the context lasts."""
    rank = comm.get_rank()
    file = logging.FileHandler(output / ("log.txt" if rank == 0 else f"log.txt.rank{rank}"))
    file.setFormatter(
        logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S")
    )
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING if comm.is_main_process() else logging.CRITICAL)
    terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    terminal.addFilter(_concerns_the_user)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(file)
        logger.addHandler(terminal)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            logger.removeHandler(file)
            logger.removeHandler(terminal)
        file.close()
