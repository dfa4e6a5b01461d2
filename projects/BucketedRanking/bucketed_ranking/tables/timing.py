"""`bucketrank table --timing`: what a training step of each detector costs with each loss.

No data set is needed: the detectors have random weights, the pictures are made up.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from rich.console import Console

from ..data.files import write_atomically
from ..engine import runs, setup
from ..environment import device_name, git_commit, installed_versions
from ..errors import BucketRankError
from ..profiling.report import now
from ..profiling.training_steps import measure_training_steps
from . import records
from .grid import DEFAULT_LOSSES, choose_configs, is_tiny
from .records import Record

DEFAULT_OUTPUT = Path("results/timing")


@dataclass(frozen=True)
class TimingRequest:
    """What to time.

    Attributes:
        detectors: names of configs, with * and ? for several; None: every full-size one.
        batch_size: pictures; None: the config's own.
        image_size: height and width in pixels.
        steps: of each detector with each loss, after a warm-up.
    """

    output: Path
    detectors: tuple[str, ...] | None = None
    losses: tuple[str, ...] | None = None
    batch_size: int | None = None
    image_size: tuple[int, int] = (800, 1333)
    steps: int = 10
    options: tuple[str, ...] = ()
    device: str | None = None


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of "800x1333".

    Raises:
        BucketRankError: it is not of this form.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if match is None or "0" in match.groups():
        raise BucketRankError(f"--image-size takes HEIGHTxWIDTH, such as 800x1333, not {text!r}.")
    return int(match[1]), int(match[2])


def time_grid(request: TimingRequest, console: Console) -> None:
    """Time every detector with every loss that is not in the folder yet.

    What does not fit into memory is marked, and the others go on.

    Raises:
        BucketRankError: an unknown detector, loss or option, or the folder holds times of other
            pictures, batches or options.
    """
    for loss in request.losses or ():
        setup.check_loss(loss)
    if request.detectors is None:
        configs = [name for name in setup.available_configs() if not is_tiny(name)]
    else:
        configs = choose_configs(request.detectors)
    cells = [(c, loss) for c in configs for loss in request.losses or DEFAULT_LOSSES]
    names = [f"{config.replace('/', '-')}-{loss}" for config, loss in cells]
    entries = [
        records.grid_entry(name, config, loss, max_iter=request.steps, timing=True)
        for name, (config, loss) in zip(names, cells, strict=True)
    ]
    records.add_to_grid(request.output, entries)
    for number, (name, (config, loss)) in enumerate(zip(names, cells, strict=True), start=1):
        path = records.timing_file(request.output, name)
        if _is_done(path, request, config, loss):
            continue
        with console.status(f"{number}/{len(cells)} {config} with {loss}"):
            record = _measure(request, name, config, loss)
        write_atomically(path, json.dumps(record.as_dict(), indent=1) + "\n")
        took = record.seconds_per_iteration
        console.print(
            f"{name}: {record.error or f'{took:.3f} s/iteration'}", highlight=False, markup=False
        )


def _is_done(path: Path, request: TimingRequest, config: str, loss: str) -> bool:
    if not path.is_file():
        return False
    before = json.loads(path.read_text())
    now = _conditions(request, _config(request, config, loss))
    if {key: before["run"].get(key) for key in now} != now:
        raise BucketRankError(
            f"{path} was timed under other conditions; choose another folder with --output."
        )
    return before["state"] == records.FINISHED


def _config(request: TimingRequest, config: str, loss: str) -> CfgNode:
    options = ["MODEL.WEIGHTS", "", *request.options]
    cfg = setup.load_config(config, loss=loss, options=options, device=request.device)
    if request.batch_size is not None:
        cfg.SOLVER.IMS_PER_BATCH = request.batch_size
    return cfg


def _conditions(request: TimingRequest, cfg: CfgNode) -> dict[str, object]:
    height, width = request.image_size
    count = cfg.SOLVER.IMS_PER_BATCH
    return {
        "config_hash": runs.config_hash(cfg),
        "device_name": device_name(cfg.MODEL.DEVICE),
        "pictures": f"random weights, {count} made-up picture{'s' if count > 1 else ''} of "
        f"{width} x {height} an iteration",
    }


def _measure(request: TimingRequest, name: str, config: str, loss: str) -> Record:
    cfg = _config(request, config, loss)
    known = {
        "name": name,
        "config": config,
        "loss": loss,
        "seed": 0,
        "dataset": None,
        "max_iter": request.steps,
        "run": {
            **_conditions(request, cfg),
            "git_commit": git_commit(),
            "versions": installed_versions("torchvision", "detectron2"),
            "device": cfg.MODEL.DEVICE,
            "threads": torch.get_num_threads(),
            "processes": 1,
            "started": now(),
        },
    }
    try:
        cost = measure_training_steps(
            cfg,
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            image_size=request.image_size,
            steps=request.steps,
            warm_up=min(3, request.steps),
        )
    except torch.OutOfMemoryError as error:
        sentence = str(error).splitlines()[0]
        return Record(**known, state=records.FAILED, error=f"out of memory: {sentence}")
    finally:
        if cfg.MODEL.DEVICE.startswith("cuda"):
            torch.cuda.empty_cache()
    return Record(
        **known,
        state=records.FINISHED,
        iterations=request.steps,
        seconds_per_iteration=cost.seconds,
        loss_ms=cost.loss_ms,
        classification_loss_ms=cost.classification_loss_ms,
        classification_loss_share=records.share_of(cost.classification_loss_ms, cost.seconds),
        images_per_second=cfg.SOLVER.IMS_PER_BATCH / cost.seconds,
        peak_memory_bytes=cost.peak_memory_bytes,
    )
