"""Which cells a table has: detectors x losses x seeds, and the training run behind each."""

import fnmatch
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detectron2.config import CfgNode

from ..data.registry import split_names
from ..engine import runs, setup
from ..errors import BucketRankError
from ..published import PUBLISHED
from ..zoo import list_configs

EMBEDDED_DATASET = "shapes"
DEFAULT_DETECTORS = ("retinanet_tiny", "faster_rcnn_tiny")
DEFAULT_LOSSES = ("score", "ap", "bap", "rs", "brs", "rs-exact")
# Of the tiny configs' own 800, so that the default grid is done in 45 minutes on two cores: with
# 400 it took 48 (docs/results/tables.md).
EMBEDDED_ITERATIONS = 300
_EVALUATIONS = 4
PROFILES = ("default", "paper")


@dataclass(frozen=True)
class Cell:
    """One training run of a table.

    Attributes:
        config: the detector, by the name of its config.
        dataset: a data set with splits; None: the config's own.
        options: KEY VALUE pairs.
        folder: where the run is, or will be.
        max_iter: iterations of training; 0 where the cell cannot be run.
        config_hash: see `runs.config_hash`; empty where the cell cannot be run.
        obstacle: why the cell cannot be run here; None where it can.
    """

    config: str
    loss: str
    seed: int
    dataset: str | None
    options: tuple[str, ...]
    folder: Path
    device: str | None = None
    max_iter: int = 0
    config_hash: str = ""
    obstacle: str | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        """Where the output of the cell's process goes: beside the run's own folder."""
        return self.folder.with_name(f"{self.name}.log")

    def arguments(self, num_gpus: int = 1) -> list[str]:
        """What stands after `bucketrank` on the command line of this cell."""
        words = ["train", self.config, "--loss", self.loss, "--seed", str(self.seed)]
        words += ["--dataset", self.dataset] if self.dataset else []
        words += ["--output", str(self.folder), "--auto-resume"]
        words += ["--device", self.device] if self.device else []
        words += ["--num-gpus", str(num_gpus)] if num_gpus > 1 else []
        return [*words, *self.options]

    def command(self, num_gpus: int = 1) -> list[str]:
        """The command that runs this cell in a process of its own."""
        return [sys.executable, "-m", "bucketrank_cli", *self.arguments(num_gpus)]

    def job(self, num_gpus: int = 1) -> str:
        """The same as a line for a shell, its output kept where a report looks for errors."""
        return (
            f"bucketrank {shlex.join(self.arguments(num_gpus))} > {shlex.quote(str(self.log))} 2>&1"
        )


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        dataset: None: the embedded one, or with the profile "paper" each config's own.
        detectors: names of configs, with * and ? for several; None: see `choose_detectors`.
        losses: None: `DEFAULT_LOSSES`, or the profile's.
        output: folder of the table.
        options: KEY VALUE pairs for every cell.
    """

    output: Path
    dataset: str | None = None
    detectors: tuple[str, ...] | None = None
    losses: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (1,)
    profile: str = "default"
    options: tuple[str, ...] = ()
    device: str | None = None


def default_output(dataset: str | None, profile: str) -> Path:
    """The folder of a table whose user named none."""
    return Path("results") / (dataset or ("paper" if profile == "paper" else EMBEDDED_DATASET))


def plan(request: Request) -> list[Cell]:
    """The cells of a table, detector by detector.

    A cell that cannot be run here, because its data set or its detector is not there, says why.

    Raises:
        BucketRankError: an unknown profile, loss, detector or option, or no such row.
    """
    if request.profile not in PROFILES:
        raise BucketRankError(
            f"There is no profile {request.profile!r}; choose one of {', '.join(PROFILES)}."
        )
    for loss in request.losses or ():
        setup.check_loss(loss)
    cells = [_cell(request, *pair, seed) for pair in _pairs(request) for seed in request.seeds]
    if not cells:
        raise BucketRankError("No row of the paper's table has these detectors and losses.")
    return cells


def _pairs(request: Request) -> list[tuple[str, str]]:
    """Config and loss of every row of the table."""
    if request.profile == "paper":
        rows = [(row.config, row.loss) for row in PUBLISHED]
        return [
            (config, loss)
            for config, loss in dict.fromkeys(rows)
            if _matches(config, request.detectors)
            and (not request.losses or loss in request.losses)
        ]
    detectors = choose_detectors(request.detectors, request.dataset)
    return [(config, loss) for config in detectors for loss in request.losses or DEFAULT_LOSSES]


def _matches(config: str, patterns: Sequence[str] | None) -> bool:
    return patterns is None or any(fnmatch.fnmatch(config, pattern) for pattern in patterns)


def choose_detectors(patterns: Sequence[str] | None, dataset: str | None) -> list[str]:
    """The configs that a user means, in the order of the patterns.

    Without patterns: those that were made for the data set (the full-size ones on COCO), and where
    there are none, the two tiny ones.

    Raises:
        BucketRankError: a pattern matches no config.
    """
    if patterns is not None:
        return choose_configs(patterns)
    name = split_names(dataset)[0].removesuffix("_train") if dataset else None
    made_for = [summary.name for summary in list_configs() if summary.dataset == name]
    return [config for config in made_for if not is_tiny(config)] or list(DEFAULT_DETECTORS)


def choose_configs(patterns: Sequence[str]) -> list[str]:
    """The shipped configs that names, with * and ? for several, stand for.

    Raises:
        BucketRankError: a pattern matches none.
    """
    configs = setup.available_configs()
    chosen: list[str] = []
    for pattern in patterns:
        matching = fnmatch.filter(configs, pattern) or [setup.find_config(pattern).stem]
        chosen += [name for name in matching if name not in chosen]
    return chosen


def is_tiny(config: str) -> bool:
    """Whether a shipped config is one of the small detectors for a CPU."""
    path = setup.available_configs().get(config)
    return path is not None and path.parent.name == "Tiny"


def cell_config(cell: Cell) -> CfgNode:
    """The full config of a cell's run.

    Raises:
        BucketRankError: its data set is not there.
    """
    cfg = setup.load_config(cell.config, loss=cell.loss, options=cell.options, device=cell.device)
    setup.configure_datasets(cfg, *setup.choose_datasets(cfg, cell.dataset, None, None))
    return cfg


def _cell(request: Request, config: str, loss: str, seed: int) -> Cell:
    dataset = request.dataset
    if dataset is None and request.profile == "default":
        dataset = EMBEDDED_DATASET
    options = list(request.options)
    cell = Cell(
        config=config,
        loss=loss,
        seed=seed,
        dataset=dataset,
        options=tuple(options),
        folder=request.output / "cells" / f"{config.replace('/', '-')}-{loss}-seed{seed}",
        device=request.device,
    )
    if request.profile == "paper" and config not in setup.available_configs():
        return replace(cell, obstacle=f"the detector {config} is not in this version yet")
    if dataset == EMBEDDED_DATASET and is_tiny(config):
        options = ["SOLVER.MAX_ITER", str(EMBEDDED_ITERATIONS), *options]
    max_iter = setup.load_config(config, options=options, device="cpu").SOLVER.MAX_ITER
    if "TEST.EVAL_PERIOD" not in options:
        options += ["TEST.EVAL_PERIOD", str(-(-max_iter // _EVALUATIONS))]
    cell = replace(cell, options=tuple(options), max_iter=max_iter)
    try:
        return replace(cell, config_hash=runs.config_hash(cell_config(cell)))
    except BucketRankError as error:
        return replace(cell, obstacle=str(error))
