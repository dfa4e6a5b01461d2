"""What a training step of whole detectors costs, on made-up pictures: `bucketrank table --timing`.

No data set is needed: the detectors have random weights, the pictures are noise.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from rich.console import Console

from .. import environment
from ..data.files import write_atomically
from ..engine import runs, setup
from ..engine.hooks import SeedEachIteration
from ..engine.loss_profiler import measure_losses, summarise_samples
from ..engine.trainer import Trainer
from ..errors import BucketRankError
from . import cell_records as records
from . import timing
from .cells import DEFAULT_LOSSES, choose_configs, is_tiny
from .output import ProgressDisplay, number, say
from .timing import Timing, TimingOptions

DEFAULT_OUTPUT = Path("results/timing")
# COCO has 7.3 objects a picture; their sizes here are spread evenly over the octaves.
_OBJECTS = 7
_SMALLEST, _LARGEST = 16, 512
_MASK_CORNERS = 12
_WARM_UP, _PROFILED = 3, 3


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
    detectors: Sequence[str] | None = None
    losses: Sequence[str] | None = None
    batch_size: int | None = None
    image_size: tuple[int, int] = (800, 1333)
    steps: int = 10
    options: tuple[str, ...] = ()
    device: str | None = None


def time_detectors(request: TimingRequest, console: Console) -> None:
    """Time every detector with every loss that is not in the folder yet.

    What does not fit into memory is marked, and the others go on.

    Raises:
        BucketRankError: an unknown detector, loss or option, or the folder holds times of other
            pictures, batches or options.
    """
    for loss in request.losses or ():
        setup.check_loss(loss)
    full_size = [name for name in setup.available_configs() if not is_tiny(name)]
    configs = full_size if request.detectors is None else choose_configs(request.detectors)
    entries = [
        {"name": f"{config.replace('/', '-')}-{loss}", "config": config, "loss": loss, "seed": 0,
         "dataset": None, "max_iter": request.steps}
        for config in configs
        for loss in request.losses or DEFAULT_LOSSES
    ]  # fmt: skip
    records.add_to_grid(request.output, [{**entry, "timing": True} for entry in entries])
    with ProgressDisplay(len(entries), console) as progress:
        for entry in entries:
            progress.advance(f"{entry['config']} with {entry['loss']}")
            path = records.timing_file(request.output, entry["name"])
            cfg = _config(request, entry["config"], entry["loss"])
            about = _conditions(request, cfg)
            before = json.loads(path.read_text()) if path.is_file() else about
            if any(before.get(key) != value for key, value in about.items()):
                raise BucketRankError(
                    f"{path} was timed under other conditions; choose another folder with --output."
                )
            if before.get("state") != records.FINISHED:
                record = {**entry, **about, **_machine(cfg), **_measure(cfg, request)}
                write_atomically(path, json.dumps(record, indent=1) + "\n")
                took = f"{number(record['seconds_per_iteration'], 3)} s/iteration"
                say(console, f"{entry['name']}: {record['error'] or took}")


def _config(request: TimingRequest, config: str, loss: str) -> CfgNode:
    options = ["MODEL.WEIGHTS", "", *request.options]
    cfg = setup.load_config(config, loss=loss, options=options, device=request.device)
    cfg.SOLVER.IMS_PER_BATCH = request.batch_size or cfg.SOLVER.IMS_PER_BATCH
    return cfg


def _conditions(request: TimingRequest, cfg: CfgNode) -> records.Record:
    count, (height, width) = cfg.SOLVER.IMS_PER_BATCH, request.image_size
    pictures = f"{count} made-up picture{'s' if count > 1 else ''} of {width} x {height}"
    amp = ", mixed precision" if cfg.SOLVER.AMP.ENABLED else ""
    return {
        "config_hash": runs.config_hash(cfg),
        "device_name": environment.device_name(cfg.MODEL.DEVICE),
        "images_per_ranking": runs.images_per_ranking(cfg, processes=1),
        "pictures": f"random weights, {pictures} an iteration{amp}",
    }


def _machine(cfg: CfgNode) -> records.Record:
    versions = environment.installed_versions("torchvision", "detectron2")
    return {
        "git_commit": environment.git_commit(),
        **{f"{name}_version": version for name, version in versions.items()},
        "device": cfg.MODEL.DEVICE,
        "threads": torch.get_num_threads(),
        "processes": 1,
        "started": runs.now(),
    }


def _measure(cfg: CfgNode, request: TimingRequest) -> records.Record:
    costs = measure_training_steps(cfg, request.image_size, request.steps)
    if costs["error"]:
        return {**costs, "state": records.FAILED}
    return {
        **costs,
        "state": records.FINISHED,
        "iterations": request.steps,
        "classification_loss_share": records.share_of(costs),
        "images_per_second": cfg.SOLVER.IMS_PER_BATCH / costs["seconds_per_iteration"],
    }


def measure_training_steps(
    cfg: CfgNode, image_size: tuple[int, int], steps: int = 10, seed: int = 0
) -> dict[str, Any]:
    """Time training steps of a detector with random weights, which stay as they are.

    With SOLVER.AMP.ENABLED the steps are those of mixed precision. A few more than `steps` are
    taken: to warm up, and under the profiler, for the times of the losses.

    Returns:
        "seconds_per_iteration" (median, without reading pictures), "loss_ms" and
        "classification_loss_ms" (see `engine.loss_profiler`), "peak_memory_bytes" (that tensors
        took on the GPU; None on the CPU) and "error": None, or that memory ran out.

    Raises:
        BucketRankError: see :func:`trainer_class`.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    make_trainer = trainer_class(cfg)
    torch.manual_seed(seed)
    cfg = cfg.clone()
    # The optimiser does all its work, but the weights, and with them the losses' input, stay.
    cfg.SOLVER.BASE_LR = 0.0
    step, samples = Timing("step"), []
    with timing.skip_without_memory(step), EventStorage() as storage:
        model = build_model(cfg).train()
        batches = itertools.repeat(make_batch(cfg, image_size, seed))
        trainer = make_trainer(model, batches, Trainer.build_optimizer(cfg, model))
        trainer.register_hooks([SeedEachIteration(seed)])
        trainer.storage, trainer.iter = storage, 0

        def call() -> None:
            trainer.before_step()
            trainer.run_step()
            trainer.iter += 1

        options = TimingOptions(steps, min(_WARM_UP, steps), max_seconds=math.inf)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        timing.warm_up(step, call, device, options)
        timing.time_calls([step], {"step": call}, device, options)
        if device.type == "cuda":
            step.peak_bytes = torch.cuda.max_memory_allocated(device)
        for _ in range(min(_PROFILED, steps)):
            with measure_losses(cfg.MODEL.DEVICE) as sample:
                call()
            samples.append(sample)
    return {
        "seconds_per_iteration": median(step.seconds) if step.seconds else None,
        **summarise_samples(samples),
        "peak_memory_bytes": step.peak_bytes,
        "error": step.skipped,
    }


def trainer_class(cfg: CfgNode) -> type[SimpleTrainer]:
    """What takes the steps, as in training: mixed precision with SOLVER.AMP.ENABLED.

    Raises:
        BucketRankError: mixed precision without CUDA.
    """
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise BucketRankError("SOLVER.AMP.ENABLED, mixed precision, needs a CUDA device.")
    return AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer


def make_batch(cfg: CfgNode, image_size: tuple[int, int], seed: int) -> list[dict]:
    """SOLVER.IMS_PER_BATCH pictures of noise with objects anywhere, in Detectron2's format."""
    generator = torch.Generator().manual_seed(seed)
    return [_make_input(cfg, image_size, generator) for _ in range(cfg.SOLVER.IMS_PER_BATCH)]


def _make_input(cfg: CfgNode, image_size: tuple[int, int], generator: torch.Generator) -> dict:
    height, width = image_size
    extent = torch.tensor([width, height])
    octaves = math.log2(_LARGEST / _SMALLEST)
    sizes = _SMALLEST * 2 ** (octaves * torch.rand(_OBJECTS, 2, generator=generator))
    sizes = sizes.minimum(0.9 * extent)
    corners = torch.rand(_OBJECTS, 2, generator=generator) * (extent - sizes)
    instances = Instances(image_size)
    instances.gt_boxes = Boxes(torch.cat([corners, corners + sizes], dim=1))
    instances.gt_classes = torch.randint(0, _num_classes(cfg), (_OBJECTS,), generator=generator)
    if cfg.MODEL.MASK_ON:
        instances.gt_masks = PolygonMasks(
            [[_ellipse(c + s / 2, s / 2)] for c, s in zip(corners, sizes, strict=True)]
        )
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


def _num_classes(cfg: CfgNode) -> int:
    return min(cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES)


def _ellipse(centre: torch.Tensor, radii: torch.Tensor):
    angles = torch.linspace(0, 2 * math.pi, _MASK_CORNERS + 1)[:-1]
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    return (centre + radii * circle).flatten().double().numpy()
