"""The folder of a training run: what is in it, who may write to it, and what may go on in it."""

import hashlib
import json
import logging
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from filelock import FileLock, Timeout

from ..config import ranking_scope
from ..data.files import write_atomically
from ..errors import BucketRankError
from .checkpoint import newest_checkpoint
from .setup import default_config, flatten, merge_file

logger = logging.getLogger(__name__)

RECORD = "run.json"
RESULTS = "results.json"
REPORT = "report.html"
CONFIG = "config.yaml"
METRICS = "metrics.json"
LOGGED = "loggers.json"
"""Which runs of other loggers a run is, and what they were sent."""
_LOCK = ".lock"
# What is in the folder of a run that was stopped before it had begun.
_WRITTEN_FIRST = {CONFIG, "log.txt", _LOCK, LOGGED, "wandb", "mlflow.db"}

# What a resumed run may have otherwise than before; an entry with a dot at its end is a section.
# All else makes another training, or, as the batch size, another order of the data.
_MAY_CHANGE = (
    "OUTPUT_DIR",
    "LOGGERS",
    "MODEL.DEVICE",
    "DATALOADER.NUM_WORKERS",
    "TEST.EVAL_PERIOD",
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.BASE_LR",
    "SOLVER.BASE_LR_END",
    "SOLVER.GAMMA",
    "SOLVER.NUM_DECAYS",
    "SOLVER.RESCALE_INTERVAL",
    "SOLVER.LR_SCHEDULER_NAME",
    "SOLVER.WARMUP_FACTOR",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.WARMUP_METHOD",
    "SOLVER.MOMENTUM",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.CLIP_GRADIENTS.",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CHECKPOINT_KEEP",
    "SOLVER.ON_NAN",
    "SOLVER.MAX_SKIPPED",
    "SOLVER.PATIENCE",
)


def is_run(folder: Path) -> bool:
    """Whether `folder` is the output folder of a run."""
    return (folder / RECORD).is_file() and (folder / CONFIG).is_file()


def evaluation_folder(run_dir: Path, dataset: str) -> Path:
    """Where the last evaluation of a training leaves its detections."""
    return run_dir / "inference" / dataset


def read_json(path: Path) -> dict[str, Any]:
    """The content of run.json (what was run, on what, how it ended) or results.json.

    Raises:
        BucketRankError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BucketRankError(
            f"{path} is damaged ({error}); remove {RESULTS} beside it, and `bucketrank train` with "
            "the run's own arguments and --resume writes both anew."
        ) from error


def read_config(run_dir: Path) -> CfgNode:
    """The full config of a run; BucketRankError if it is damaged or of another version."""
    cfg = default_config()
    merge_file(cfg, run_dir / CONFIG)
    return cfg


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.json; what a kill or a full disk has left of one is skipped."""
    path = run_dir / METRICS
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "iteration" in row:
            rows.append(row)
    return rows


def rewind_metrics(cfg: CfgNode, start_iter: int, period: int) -> bool:
    """Leave out of metrics.json what a run that goes on at `start_iter` will write again.

    Rows are due every `period` iterations, after an evaluation, and at the end.

    Returns:
        Whether the row of the iteration before is due and not there, or lacks its evaluation.
    """
    run_dir, eval_period = Path(cfg.OUTPUT_DIR), cfg.TEST.EVAL_PERIOD
    evaluates = (
        eval_period > 0 and start_iter % eval_period == 0 and start_iter != cfg.SOLVER.MAX_ITER
    )
    due = evaluates or start_iter % period == 0 or start_iter == cfg.SOLVER.MAX_ITER
    rows = [row for row in read_metrics(run_dir) if row["iteration"] < start_iter]
    there = bool(rows) and rows[-1]["iteration"] == start_iter - 1
    if there and not has_ap(rows[-1]) and (evaluates or not due):
        rows.pop()  # of a stop, or of a kill before the evaluation
        there = False
    if (run_dir / METRICS).is_file():
        write_atomically(run_dir / METRICS, "".join(f"{json.dumps(row)}\n" for row in rows))
    return start_iter > 0 and due and not there


def has_ap(row: dict[str, Any]) -> bool:
    """Whether a row of metrics.json has the results of an evaluation."""
    return any(key.endswith("/AP") for key in row)


def metric_of(cfg: CfgNode) -> str:
    """What the best checkpoint of a run is chosen by, as metrics.json calls it."""
    return "segm/AP" if cfg.MODEL.MASK_ON else "bbox/AP"


def evaluations(run_dir: Path, metric: str) -> list[tuple[int, float]]:
    """The iteration and the value, perhaps NaN, of every evaluation of a run by `metric`."""
    return [(row["iteration"], row[metric]) for row in read_metrics(run_dir) if metric in row]


def best_of(found: list[tuple[int, float]]) -> tuple[int, float] | None:
    """The first of the best :func:`evaluations`; None where there is none, or all are NaN."""
    known = [each for each in found if not math.isnan(each[1])]
    return max(known, key=lambda each: each[1], default=None)


@contextmanager
def lock(output: Path) -> Iterator[None]:
    """Keep other trainings out of a folder while the context lasts, or this process lives.

    Raises:
        BucketRankError: another one trains in it.
    """
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / _LOCK, timeout=0):
            yield
    except Timeout as error:
        raise BucketRankError(
            f"Another training writes to {output}; wait for it, stop it, or choose another "
            "--output."
        ) from error


def prepare_run(cfg: CfgNode, resume: bool) -> Path:
    """Check the output folder of a run before anything is written to it.

    Raises:
        BucketRankError: a new run would write into a folder that holds something; a run to be
            resumed is not there, has no whole checkpoint, has been trained longer than MAX_ITER, or
            was started with another value of a key that must stay; another training writes to it.
    """
    output = Path(cfg.OUTPUT_DIR)
    if resume:
        if not is_run(output):
            raise BucketRankError(
                f"There is no run to resume in {output}; leave --resume out to start one."
            )
        _require_same(read_config(output), cfg)
        newest = newest_checkpoint(output)
        if newest and newest.iterations > cfg.SOLVER.MAX_ITER:
            raise BucketRankError(
                f"The run in {output} has been trained for {newest.iterations} iterations already, "
                f"but SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}; raise it to go on."
            )
    elif output.exists() and {path.name for path in output.iterdir()} - _WRITTEN_FIRST:
        raise BucketRankError(
            f"The output folder {output} is not empty; add --resume to go on with the run in it, "
            "or choose another with --output."
        )
    if output.exists():
        with lock(output):
            pass
    return output


def _require_same(before: CfgNode, now: CfgNode) -> None:
    values = flatten(before)
    changed = {
        key: value
        for key, value in flatten(now).items()
        # As JSON: a config that was read has lists in place of some tuples.
        if json.dumps(values.get(key)) != json.dumps(value) and not _may_change(key)
    }
    if changed:
        key, value = next(iter(changed.items()))
        raise BucketRankError(
            f"The run in {now.OUTPUT_DIR} was started with {key} {values.get(key)!r}, not "
            f"{value!r}; resume it with the same arguments, or start another in its own --output, "
            "from these weights if you like (MODEL.WEIGHTS). Learning rate and schedule, clipping, "
            "and the periods of saving and evaluating may change."
        )


def _may_change(key: str) -> bool:
    return any(key.startswith(each) if each.endswith(".") else key == each for each in _MAY_CHANGE)


def is_finished(run_dir: Path, max_iter: int, patience: int | None = None) -> bool:
    """Whether a run has been trained for `max_iter` iterations, or stopped early, and evaluated.

    Args:
        patience: SOLVER.PATIENCE with which it would go on; None: that of the run itself.
    """
    if not is_run(run_dir) or not (run_dir / RESULTS).is_file():
        return False
    record = read_json(run_dir / RECORD)
    if record["state"] != "finished":
        return False
    waited = record.get("stopped_early_after", 0)  # evaluations without a better AP
    patience = waited if patience is None else patience
    return record["iterations"] == max_iter or 0 < patience <= waited


def choose_seed(cfg: CfgNode, seed: int | None, resume: bool = False) -> None:
    """Set cfg.SEED: that of the run to resume, else the given one, the config's, a random one.

    Raises:
        BucketRankError: another seed is given than the run to resume has.
    """
    output = Path(cfg.OUTPUT_DIR)
    if resume and is_run(output):
        started_with = read_config(output).SEED
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


def images_per_ranking(cfg: CfgNode, processes: int) -> int:
    """How many images one ranking spans: those of a forward pass, of one process or of all.

    It decides what is optimised, and how long a loop takes.
    """
    images = cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATE
    return images if ranking_scope(cfg) == "global" else images // processes


def config_hash(cfg: CfgNode, processes: int = 1) -> str:
    """A short hash of what decides a run's result but its seed.

    It is over the keys that differ from their defaults, so that a new key changes no hash, and over
    the images of a ranking where several processes share a batch. The folder, the device and the
    loggers are left out.
    """
    defaults = default_config()
    cfg = cfg.clone()
    for given in (cfg, defaults):
        given.OUTPUT_DIR, given.SEED, given.MODEL.DEVICE, given.LOGGERS = "", 0, "", []
    before = flatten(defaults)
    changed = [
        f"{key}: {value!r}"
        for key, value in sorted(flatten(cfg).items())
        if key not in before or repr(before[key]) != repr(value)
    ]
    if images_per_ranking(cfg, processes) != cfg.SOLVER.IMS_PER_BATCH:
        changed.append(f"images_per_ranking: {images_per_ranking(cfg, processes)}")
    return hashlib.sha256("\n".join(changed).encode()).hexdigest()[:12]
