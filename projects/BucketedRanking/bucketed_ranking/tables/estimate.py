"""How long the cells of a table will take."""

from collections.abc import Sequence
from statistics import mean

from detectron2.config import CfgNode
from rich.console import Console

from ..profiling.training_steps import measure_training_steps
from ..published import published
from . import records
from .grid import Cell, cell_config, is_tiny

# Starting a process, building the detector, reading the data set.
_START_SECONDS = 15.0
# What the evaluations and checkpoints of a run cost beside its training.
_EVALUATION_SHARE = 0.25


class Estimates:
    """Seconds that cells take: by what has been seen of the same detector, else as published.

    Args:
        probed: seconds per iteration by config and loss, measured beforehand.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        probed: dict[tuple[str, str], float] | None = None,
    ) -> None:
        self._probed = probed or {}
        self._seen: dict[tuple[str, str], list[float]] = {}
        for cell in cells:
            self.learn(records.read_record(cell))

    def learn(self, record: records.Record) -> None:
        """Take account of a finished cell."""
        if record.state == records.FINISHED and record.seconds_per_iteration:
            pair = record.config, record.loss
            self._seen.setdefault(pair, []).append(record.seconds_per_iteration)

    def per_iteration(self, config: str, loss: str) -> tuple[float, str] | None:
        """Seconds, and in words where they come from; None where nothing is known."""
        pair = config, loss
        if pair in self._seen:
            return mean(self._seen[pair]), "finished cells"
        if pair in self._probed:
            return self._probed[pair] * self._drift(), "a few steps"
        row = published(config, loss)
        if row is not None and row.seconds_per_iteration is not None:
            return row.seconds_per_iteration, "published, 4 A100"
        return None

    def _drift(self) -> float:
        """By how much finished cells took longer than their probes."""
        ratios = [mean(s) / self._probed[p] for p, s in self._seen.items() if p in self._probed]
        return mean(ratios) if ratios else 1.0

    def seconds(self, cell: Cell) -> float | None:
        """Seconds that a cell still takes, were it started now; None where nothing is known."""
        known = self.per_iteration(cell.config, cell.loss)
        if known is None:
            return None
        left = cell.max_iter - records.read_record(cell).iterations
        return _START_SECONDS + known[0] * left * (1 + _EVALUATION_SHARE)

    def left(self, cell: Cell, start_iter: int, iterations: int, elapsed: float) -> float | None:
        """Seconds that a running cell still takes, by its own pace once it has shown one."""
        if iterations > start_iter:
            return elapsed / (iterations - start_iter) * (cell.max_iter - iterations)
        seconds = self.seconds(cell)
        return None if seconds is None else max(0.0, seconds - elapsed)


def estimate(cells: Sequence[Cell], num_gpus: int, console: Console) -> Estimates:
    """What is known of the time of the cells, trying a few steps where nothing is.

    A full-size detector is not tried on a CPU, where its steps take minutes.
    """
    estimates = Estimates(cells)
    probed = {}
    for cell in cells:
        pair = cell.config, cell.loss
        if cell.obstacle or pair in probed or estimates.per_iteration(*pair) is not None:
            continue
        cfg = cell_config(cell)
        if is_tiny(cell.config) or cfg.MODEL.DEVICE.startswith("cuda"):
            with console.status(f"Trying a few steps of {cell.config} with {cell.loss}"):
                cost = measure_training_steps(
                    cfg,
                    batch_size=max(1, cfg.SOLVER.IMS_PER_BATCH // num_gpus),
                    image_size=_usual_size(cfg),
                    steps=2,
                    warm_up=1,
                )
            probed[pair] = cost.seconds
    return Estimates(cells, probed)


def _usual_size(cfg: CfgNode) -> tuple[int, int]:
    """Height and width of a training picture of the usual 3 : 4, at its largest."""
    short = max(cfg.INPUT.MIN_SIZE_TRAIN)
    return short, min(short * 4 // 3, cfg.INPUT.MAX_SIZE_TRAIN)


def in_words(seconds: float) -> str:
    """A length of time as people say it: 40 s, 12 min, 3.5 h, 2.1 days."""
    for limit, unit, name, decimals in (
        (100, 1, "s", 0),
        (100 * 60, 60, "min", 0),
        (48 * 3600, 3600, "h", 1),
    ):
        if seconds < limit:
            return f"{seconds / unit:.{decimals}f} {name}"
    return f"{seconds / 86400:.1f} days"
