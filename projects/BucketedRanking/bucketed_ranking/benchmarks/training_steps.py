"""What a training step of whole detectors costs, on made-up pictures: `bucketrank table --timing`.

No data set is needed: the detectors have random weights, the pictures are noise.
"""

import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from rich.console import Console

from ..console import ProgressDisplay, number, say
from ..data.files import write_atomically
from ..engine import runs, setup
from ..engine.hooks import SeedEachIteration
from ..engine.loss_profiler import measure_losses, summarise_samples
from ..engine.run_records import Record, flat_run, share_of
from ..engine.step import TrainingStep
from ..engine.trainer import Trainer
from ..errors import BucketRankError
from ..zoo import available_configs
from . import cell_records as records
from . import timing
from .cells import DEFAULT_LOSSES, choose_detectors, is_small
from .timing import Timing, TimingOptions

# COCO has 7.3 objects a picture; their sizes here are spread evenly over the octaves.
_OBJECTS = 7
_SEED = 0
_SMALLEST, _LARGEST = 16, 512
_MASK_CORNERS = 12
_WARM_UP, _PROFILED = 3, 3
_CONDITIONS = ("config_hash", "device_name", "images_per_ranking", "pictures")


def time_detectors(
    output: Path,
    console: Console,
    *,
    detectors: Sequence[str] | None = None,
    losses: Sequence[str] | None = None,
    batch_size: int | None = None,
    image_size: tuple[int, int] = (800, 1333),
    steps: int = 10,
    options: Sequence[str] = (),
    device: str | None = None,
) -> None:
    """Time every detector with every loss that is not in the folder yet.

    What does not fit into memory is marked, and the others go on.

    Args:
        detectors: names of configs, with * and ? for several; None: every full-size one.
        batch_size: pictures; None: the config's own.
        image_size: height and width in pixels.
        steps: of each detector with each loss, after a warm-up.

    Raises:
        BucketRankError: an unknown detector, loss or option, or the folder holds times of other
            pictures, batches or options.
    """
    for loss in losses or ():
        setup.check_loss(loss)
    full_size = [name for name in available_configs() if not is_small(name)]
    configs = choose_detectors(detectors or full_size, None)
    entries: list[Record] = []
    for config, loss in itertools.product(configs, losses or DEFAULT_LOSSES):
        entry = {"name": f"{config.replace('/', '-')}-{loss}", "config": config, "loss": loss}
        entries.append({**entry, "seed": 0, "dataset": None, "max_iter": steps})
    records.add_to_grid(output, [{**entry, "timing": True} for entry in entries])
    with ProgressDisplay(len(entries), console) as progress:
        for entry in entries:
            config, loss = entry["config"], entry["loss"]
            progress.advance(f"{config} with {loss}")
            path = records.timing_file(output, entry["name"])
            given = ["MODEL.WEIGHTS", "", *options]
            cfg = setup.load_config(config, loss=loss, options=given, device=device)
            cfg.SOLVER.IMS_PER_BATCH = batch_size or cfg.SOLVER.IMS_PER_BATCH
            about = flat_run(runs.describe_run(cfg, processes=1))
            about["pictures"] = _pictures(cfg, image_size)
            before = json.loads(path.read_text()) if path.is_file() else about
            if any(before.get(key) != about[key] for key in _CONDITIONS):
                raise BucketRankError(
                    f"{path} was timed under other conditions; choose another folder with --output."
                )
            if before.get("state") != records.FINISHED:
                costs = measure_training_steps(cfg, image_size, steps)
                write_atomically(path, json.dumps(entry | about | costs, indent=1) + "\n")
                took = f"{number(costs['seconds_per_iteration'], 3)} s/iteration"
                say(console, f"{entry['name']}: {costs['error'] or took}")


def _pictures(cfg: CfgNode, image_size: tuple[int, int]) -> str:
    count, (height, width) = cfg.SOLVER.IMS_PER_BATCH, image_size
    pictures = f"{count} made-up picture{'s' if count > 1 else ''} of {width} x {height}"
    amp = ", mixed precision" if cfg.SOLVER.AMP.ENABLED else ""
    return f"random weights, {pictures} an iteration{amp}"


def measure_training_steps(cfg: CfgNode, image_size: tuple[int, int], steps: int) -> Record:
    """Time training steps of a detector with random weights, which stay as they are.

    A few more than `steps` are taken: to warm up, and under the profiler, for the losses.

    Returns:
        The state and costs of a record; peak memory is that of tensors on the GPU.
    """
    step, samples = _time_steps(cfg, image_size, steps)
    seconds = median(step.seconds) if step.seconds else None
    record = {"seconds_per_iteration": seconds, "peak_memory_bytes": step.peak_bytes}
    record |= summarise_samples(samples)
    if step.skipped or seconds is None:
        return {**record, "state": records.FAILED, "error": step.skipped}
    record |= {"state": records.FINISHED, "error": None, "iterations": steps}
    record |= {"images_per_second": cfg.SOLVER.IMS_PER_BATCH / seconds}
    return record | {"classification_loss_share": share_of(record)}


def _time_steps(
    cfg: CfgNode, image_size: tuple[int, int], steps: int
) -> tuple[Timing, list[dict[str, float]]]:
    device = torch.device(cfg.MODEL.DEVICE)
    torch.manual_seed(_SEED)
    generator = torch.Generator().manual_seed(_SEED)
    cfg = cfg.clone()
    # The optimiser does all its work, but the weights, and with them the losses' input, stay.
    cfg.SOLVER.BASE_LR = 0.0
    step, samples = Timing("step"), []
    with (
        timing.skip_without_memory(step),
        tempfile.TemporaryDirectory() as cfg.OUTPUT_DIR,
        EventStorage() as storage,
    ):
        model = build_model(cfg).train()
        count = cfg.SOLVER.IMS_PER_BATCH
        batches = itertools.repeat([make_input(cfg, image_size, generator) for _ in range(count)])
        trainer = TrainingStep(cfg, model, batches, Trainer.build_optimizer(cfg, model))
        trainer.register_hooks([SeedEachIteration(_SEED)])
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
    return step, samples


def make_input(cfg: CfgNode, image_size: tuple[int, int], generator: torch.Generator) -> dict:
    """A picture of noise with objects anywhere, in Detectron2's format."""
    height, width = image_size
    extent = torch.tensor([width, height])
    octaves = math.log2(_LARGEST / _SMALLEST)
    sizes = _SMALLEST * 2 ** (octaves * torch.rand(_OBJECTS, 2, generator=generator))
    sizes = sizes.minimum(0.9 * extent)
    corners = torch.rand(_OBJECTS, 2, generator=generator) * (extent - sizes)
    instances = Instances(image_size)
    instances.gt_boxes = Boxes(torch.cat([corners, corners + sizes], dim=1))
    classes = min(cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    instances.gt_classes = torch.randint(0, classes, (_OBJECTS,), generator=generator)
    if cfg.MODEL.MASK_ON:
        angles = torch.arange(_MASK_CORNERS) * (2 * math.pi / _MASK_CORNERS)
        circle = torch.stack([angles.cos(), angles.sin()], dim=1)
        ellipses = corners[:, None] + sizes[:, None] / 2 * (1 + circle)
        instances.gt_masks = PolygonMasks([[e.flatten().double().numpy()] for e in ellipses])
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}
