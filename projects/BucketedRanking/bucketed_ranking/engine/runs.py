"""Training runs: starting, resuming and finishing them, and what they leave in their folder."""

import logging
import resource
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from rich.console import Console
from torch.multiprocessing import ProcessRaisedException

from ..data.catalog import category_ids, register
from ..data.files import write_atomically
from ..data.registry import find_dataset
from ..environment import device_name, git_commit, installed_versions
from ..errors import BucketRankError
from .data_loader import images_per_process
from .evaluation import write_results
from .hooks import WARM_UP_ITERATIONS
from .image_workers import lost_worker
from .loggers import logging_rows, require_loggers
from .loss_profiler import summarise_samples
from .processes import (
    Processes,
    StopRequest,
    TrainingInterruptedError,
    is_first_process,
    run_together,
    started_outside,
)
from .run_folder import (
    CONFIG,
    RECORD,
    RESULTS,
    best_of,
    config_hash,
    evaluations,
    images_per_ranking,
    lock,
    metric_of,
    prepare_run,
    read_json,
)
from .run_logging import run_logging
from .trainer import Trainer

logger = logging.getLogger(__name__)

_DIVERGED = (
    "Lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or clip gradients "
    "(SOLVER.CLIP_GRADIENTS.ENABLED True); --resume goes on from the last checkpoint with them."
)
_RECORDED_PACKAGES = ("torchvision", "detectron2", "numpy", "faster-coco-eval")


def train(
    cfg: CfgNode,
    *,
    resume: bool = False,
    processes: Processes | None = None,
    profile: bool = False,
    announce: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """Train a detector, evaluate it, and leave everything in cfg.OUTPUT_DIR.

    The folder holds config.yaml, log.txt, metrics.json, TensorBoard events, checkpoints,
    run.json (what was run, on what, how it ended) and results.json (AP and timings).

    Args:
        cfg: see :func:`load_config` and :func:`configure_datasets`; SEED must be set.
        resume: go on with the run in cfg.OUTPUT_DIR, on any number of processes.
        processes: that train together; None: one, or those that torchrun or Slurm has started. A
            batch is divided over them. With SOLVER.REFERENCE_WORLD_SIZE, batch size, learning rate
            and schedule are scaled as Detectron2 does.
        profile: measure how long the losses take; see :mod:`.loss_profiler`.
        announce: called on the first of them once everything is checked, before it begins.

    Returns:
        The content of results.json; None on all but the first of several processes or machines.

    Raises:
        BucketRankError: the folder, the batch or the machine is not fit (see :func:`prepare_run`),
            there is patience but no evaluation that it could count, averaged weights but no
            statistics for them, a logger cannot be used, or training diverged.
        TrainingInterruptedError: the user or the system stopped it; a checkpoint was saved.
    """
    if cfg.SOLVER.PATIENCE and not cfg.TEST.EVAL_PERIOD:
        raise BucketRankError(
            "SOLVER.PATIENCE (--patience) counts evaluations while training, of which there are "
            "none: give TEST.EVAL_PERIOD, in iterations, or --epochs, which brings them along."
        )
    if cfg.SOLVER.EMA_DECAY and cfg.TEST.PRECISE_BN.ENABLED:
        raise BucketRankError(
            "TEST.PRECISE_BN measures batch norms of the trained weights, but SOLVER.EMA_DECAY "
            "(--ema) evaluates their average: give one of the two."
        )
    require_loggers(cfg)
    processes = processes or Processes()
    cfg = scale_to_processes(cfg, processes)
    first, output = is_first_process(processes), Path(cfg.OUTPUT_DIR)
    if first:
        prepare_run(cfg, resume)
        announce()
    try:
        run_together(_train_worker, processes, cfg.MODEL.DEVICE, (cfg, resume, profile))
    except (FloatingPointError, ProcessRaisedException) as error:
        # With several processes the exception itself stays in the one that raised it.
        record = read_json(output / RECORD) if (output / RECORD).is_file() else {}
        if record.get("state") == "diverged":
            raise BucketRankError(
                f"{record['error']} The log is in {output / 'log.txt'}."
            ) from error
        raise
    return read_json(output / RESULTS) if first else None


def scale_to_processes(cfg: CfgNode, processes: Processes) -> CfgNode:
    """The config for so many processes: as it is, or, where SOLVER.REFERENCE_WORLD_SIZE is above 0,
    with batch size, learning rate and schedule scaled from that number to this one.

    Raises:
        BucketRankError: the machine has not the devices, or the batch does not divide.
    """
    processes.check(cfg.MODEL.DEVICE)
    outside = started_outside()
    total, reference = (
        outside.total if outside else processes.total,
        cfg.SOLVER.REFERENCE_WORLD_SIZE,
    )
    if reference > 0:
        images_per_process(cfg, reference)
    cfg = DefaultTrainer.auto_scale_workers(cfg, total)
    images_per_process(cfg, total)
    return cfg


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


def _train_worker(cfg: CfgNode, resume: bool, profile: bool, stop: StopRequest) -> None:
    # Those that torchrun or Slurm started have each read the command line: the first one decides.
    cfg, resume = comm.all_gather((cfg, resume))[0]
    output = Path(cfg.OUTPUT_DIR)
    if not comm.is_main_process():
        comm.synchronize()
        _train(cfg, resume, profile, stop)
        return
    with lock(output):
        write_atomically(output / CONFIG, cfg.dump())
        comm.synchronize()
        _train(cfg, resume, profile, stop)


def _train(cfg: CfgNode, resume: bool, profile: bool, stop: StopRequest) -> None:
    output = Path(cfg.OUTPUT_DIR)
    datasets = {name: register(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    with run_logging(output), logging_rows(cfg) as last_hooks:
        seed_all_rng(cfg.SEED + comm.get_rank())
        logger.info("Environment:\n%s", collect_env_info())
        for info in datasets.values():
            logger.info("%s", info)  # with what was skipped, and how often
        record = {
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
        trainer = Trainer(cfg, console, profile=profile, stop=stop)
        trainer.register_hooks(last_hooks)
        trainer.resume_or_load(resume)
        try:
            trainer.train()
            record["state"] = "finished"
            record["stopped_early_after"] = trainer.stopped_early_after
            record["unreadable_images"] = trainer.unreadable_images()
        except FloatingPointError as error:
            record["state"] = "diverged"
            record["error"] = (
                f"Training diverged at iteration {trainer.iter}: {_one_line(error)} {_DIVERGED}"
            )
            raise
        except TrainingInterruptedError as stopped:
            record["state"] = "interrupted"
            trainer.iter = stopped.iteration + 1
            record["unreadable_images"] = trainer.unreadable_images()
            raise
        except KeyboardInterrupt:
            record["state"] = "interrupted"
            raise
        except Exception as error:
            record["state"] = "failed"
            record["error"] = f"{type(error).__name__}: {_one_line(error)}"
            if lost_worker(error):
                raise BucketRankError(
                    "A process that loads images was killed, as the system does when memory runs "
                    f"out ({_one_line(error)}) Lower DATALOADER.NUM_WORKERS; --resume goes on from "
                    "the last checkpoint."
                ) from error
            raise
        finally:
            record["iterations"] = min(trainer.iter, trainer.max_iter)
            record["ended"] = _now()
            record["skipped_iterations"] = trainer.skipped
            write_results(output / RECORD, record)
            if record["state"] == "diverged":
                comm.synchronize()  # all of them are here; torch ends them when one has ended
        results = _results(cfg, trainer, len(record["unreadable_images"]))
        write_results(output / RESULTS, results)


def _results(cfg: CfgNode, trainer: Trainer, unreadable: int) -> dict[str, Any]:
    seconds = median_seconds(trainer.storage, trainer.start_iter + WARM_UP_ITERATIONS)
    times = summarise_samples(trainer.loss_profiler.samples if trainer.loss_profiler else [])
    latest = trainer.storage.latest()
    metric = metric_of(cfg)
    found = evaluations(Path(cfg.OUTPUT_DIR), metric) if cfg.TEST.EVAL_PERIOD else []
    best = best_of(found)
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
        "unreadable_images": unreadable,
        "best": best and {"iterations": min(best[0] + 1, trainer.max_iter), metric: best[1]},
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
