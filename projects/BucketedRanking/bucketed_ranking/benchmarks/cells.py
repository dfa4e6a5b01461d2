"""The cells of a table: detectors x losses x seeds, each with the training run behind it."""

import fnmatch
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from ..config import SCORE_LOSS
from ..data.registry import split_names
from ..engine import run_folder, setup
from ..environment import choose_device
from ..errors import BucketRankError
from ..published import PUBLISHED
from ..zoo import available_configs, find_config, list_configs

EMBEDDED_DATASET = "shapes"
DEFAULT_DETECTORS = ("retinanet_tiny", "faster_rcnn_tiny")
DEFAULT_LOSSES = ("score", "ap", "bap", "rs", "brs", "rs-exact")
# Of the tiny configs' own 800, so that the default grid is done in 33 to 45 minutes on two cores
# (docs/results/tables.md).
EMBEDDED_ITERATIONS = 300
_EVALUATIONS = 4
_RANKING = "MODEL.RANKING."


@dataclass(frozen=True)
class Cell:
    """One training run of a table.

    Attributes:
        config: the detector, by the name of its config.
        dataset: a data set with splits; None: the config's own.
        options: KEY VALUE pairs.
        variant: name of a change to the config, whose keys are among the options; "": none.
        folder: where the run is, or will be.
        processes: that train together, one a GPU or on the CPU.
        max_iter, images_per_ranking, config_hash: of the run (see
            `engine.run_folder`), as far as they are known.
        obstacle: why the cell cannot be run here; None where it can.
    """

    config: str
    loss: str
    seed: int
    dataset: str | None
    options: tuple[str, ...]
    folder: Path
    variant: str = ""
    device: str | None = None
    processes: int = 1
    max_iter: int = 0
    images_per_ranking: int | None = None
    config_hash: str = ""
    obstacle: str | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        """Where the output of the cell's process goes: beside the run's own folder."""
        return self.folder.with_name(f"{self.name}.log")

    def arguments(self) -> list[str]:
        """What stands after `bucketrank` on the command line of this cell."""
        words = ["train", self.config, "--loss", self.loss, "--seed", str(self.seed), "--profile"]
        words += ["--dataset", self.dataset] if self.dataset else []
        words += ["--output", str(self.folder), "--auto-resume"]
        words += ["--device", self.device] if self.device else []
        words += ["--num-processes", str(self.processes)] if self.processes > 1 else []
        return [*words, *self.options]

    def command(self) -> list[str]:
        """The command that runs this cell in a process of its own."""
        return [sys.executable, "-m", "bucketrank_cli", *self.arguments()]

    def job(self) -> str:
        """The same as a line for a shell, its output kept where a report looks for errors."""
        return f"bucketrank {shlex.join(self.arguments())} > {shlex.quote(str(self.log))} 2>&1"


def plan(
    output: Path,
    *,
    dataset: str | None = None,
    detectors: Sequence[str] | None = None,
    losses: Sequence[str] | None = None,
    seeds: Sequence[int] = (1,),
    paper: bool = False,
    options: Sequence[str] = (),
    variants: Mapping[str, Sequence[str]] | None = None,
    device: str | None = None,
    processes: int = 1,
) -> list[Cell]:
    """The cells of a table, detector by detector.

    A cell that cannot be run here, because its data set or its detector is not there, says why.

    Args:
        dataset: None: the embedded one, or with `paper` each config's own.
        detectors: names of configs, with * and ? for several; None: see `choose_detectors`.
        losses: None: `DEFAULT_LOSSES`, or the paper's.
        paper: only the rows of the paper's table.
        variants: KEY VALUE pairs by the name of a change: cells of each beside those without. One
            of MODEL.RANKING alone changes nothing for the detector's own loss, which gets none.
        processes: of each cell.

    Raises:
        BucketRankError: an unknown loss, detector or option, or no such row.
    """
    for loss in losses or ():
        setup.check_loss(loss)
    if paper:
        pairs = [
            (row.config, row.loss, row.options)
            for row in PUBLISHED
            if any(fnmatch.fnmatch(row.config, pattern) for pattern in detectors or ["*"])
            and row.loss in (losses or (row.loss,))
        ]
    else:
        configs = choose_detectors(detectors, dataset)
        dataset = dataset or EMBEDDED_DATASET
        pairs = [(config, loss, ()) for config in configs for loss in losses or DEFAULT_LOSSES]
    if not pairs:
        raise BucketRankError("No row of the paper's table has these detectors and losses.")
    cells = []
    changes = {"": (), **(variants or {})}
    for (config, loss, of_paper), (variant, keys) in product(pairs, changes.items()):
        if loss == SCORE_LOSS and keys and all(key.startswith(_RANKING) for key in keys[::2]):
            continue
        name = "-".join(filter(None, (config.replace("/", "-"), loss, variant)))
        chosen = (*of_paper, *keys, *options)
        for seed in seeds:
            folder = output / "cells" / f"{name}-seed{seed}"
            cell = Cell(config, loss, seed, dataset, chosen, folder, variant, device, processes)
            cells.append(_complete(cell))
    return cells


def choose_detectors(patterns: Sequence[str] | None, dataset: str | None) -> list[str]:
    """The shipped configs that names, with * and ? for several, stand for, in their order.

    Without patterns: those that were made for the data set (the full-size ones on COCO), and where
    there are none, the two tiny ones.

    Raises:
        BucketRankError: a pattern matches no config.
    """
    if patterns is None:
        name = split_names(dataset)[0].removesuffix("_train") if dataset else None
        made_for = [summary.name for summary in list_configs() if summary.dataset == name]
        return [config for config in made_for if not is_small(config)] or list(DEFAULT_DETECTORS)
    configs = available_configs()
    chosen: list[str] = []
    for pattern in patterns:
        chosen += fnmatch.filter(configs, pattern) or [find_config(pattern).stem]
    return list(dict.fromkeys(chosen))


def is_tiny(config: str) -> bool:
    """Whether a shipped config is one of the tiny detectors that learn from scratch on a CPU."""
    return _folder(config) == "Tiny"


def is_small(config: str) -> bool:
    """Whether a shipped config is tiny, or light: made for a CPU or one small GPU."""
    return _folder(config) in ("Tiny", "Light")


def _folder(config: str) -> str | None:
    path = available_configs().get(config)
    return path and path.parent.name


def _complete(cell: Cell) -> Cell:
    """The cell with what its config says, or with its obstacle."""
    options = list(cell.options)
    if cell.dataset == EMBEDDED_DATASET and is_tiny(cell.config):
        options = ["SOLVER.MAX_ITER", str(EMBEDDED_ITERATIONS), *options]
    cfg = setup.load_config(cell.config, loss=cell.loss, options=options, device="cpu")
    if "TEST.EVAL_PERIOD" not in options:
        cfg.TEST.EVAL_PERIOD = -(-cfg.SOLVER.MAX_ITER // _EVALUATIONS)
        options += ["TEST.EVAL_PERIOD", str(cfg.TEST.EVAL_PERIOD)]
    batch, max_iter = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER
    images = run_folder.images_per_ranking(cfg, cell.processes)
    cell = replace(cell, options=tuple(options), max_iter=max_iter, images_per_ranking=images)
    try:
        choose_device(cell.device)
        setup.configure_datasets(cfg, *setup.choose_datasets(cfg, cell.dataset, None, None))
    except BucketRankError as error:
        return replace(cell, obstacle=str(error))
    if batch % cell.processes:
        problem = f"a batch of {batch} does not divide over {cell.processes} processes."
        return replace(cell, obstacle=problem)
    return replace(cell, config_hash=run_folder.config_hash(cfg, cell.processes))
