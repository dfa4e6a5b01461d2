"""The rows of a table: cells of several seeds together, and what is compared with what."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import SCORE_LOSS
from ..losses import LOSS_NAMES
from ..published import PublishedRow, published
from .records import FINISHED, TASKS, Record


@dataclass(frozen=True)
class Statistic:
    """Mean over `count` seeds and their sample standard deviation, NaN-free; None with one seed."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistic | None":
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.mean(values), std, len(values))


@dataclass(frozen=True)
class Row:
    """One detector with one loss, over its finished seeds."""

    config: str
    loss: str
    cells: tuple[Record, ...]
    unbucketed: "Row | None" = None
    score: "Row | None" = None

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(cell.seed for cell in self.cells)

    def statistic(self, of_cell: Callable[[Record], float | None]) -> Statistic | None:
        """Mean and deviation of a number of each cell."""
        values = [of_cell(cell) for cell in self.cells]
        return Statistic.of([value for value in values if value is not None])

    def metric(self, task: str, name: str) -> Statistic | None:
        """AP, AP50, ... of "bbox" or "segm"."""
        return self.statistic(lambda cell: cell.metrics.get(task, {}).get(name))

    def difference(self, other: "Row | None", task: str, name: str = "AP") -> Statistic | None:
        """This row's metric less the other's, seed by seed over the seeds that both have."""
        if other is None:
            return None
        theirs = {cell.seed: cell.metrics.get(task, {}).get(name) for cell in other.cells}
        ours = {cell.seed: cell.metrics.get(task, {}).get(name) for cell in self.cells}
        pairs = [(ap, theirs.get(seed)) for seed, ap in ours.items()]
        return Statistic.of([a - b for a, b in pairs if a is not None and b is not None])

    def speed_up(self) -> float | None:
        """How many times less time an iteration takes than without buckets."""
        own = self.statistic(lambda cell: cell.seconds_per_iteration)
        other = self.unbucketed and self.unbucketed.statistic(lambda c: c.seconds_per_iteration)
        return other.mean / own.mean if own and other else None

    @property
    def published(self) -> PublishedRow | None:
        return published(self.config, self.loss)

    def as_dict(self) -> dict[str, Any]:
        """What a report says of this row, in plain types."""

        def plain(statistic: Statistic | None) -> dict[str, Any] | None:
            return None if statistic is None else vars(statistic)

        tasks = [task for task in TASKS if self.metric(task, "AP")]
        return {
            "config": self.config,
            "loss": self.loss,
            "seeds": list(self.seeds),
            "metrics": {
                task: {name: plain(self.metric(task, name)) for name in METRICS} for task in tasks
            },
            "difference_from_unbucketed": {
                task: plain(self.difference(self.unbucketed, task)) for task in tasks
            },
            "difference_from_score": {
                task: plain(self.difference(self.score, task)) for task in tasks
            },
            "speed_up": self.speed_up(),
            **{name: plain(self.statistic(of_cell)) for name, of_cell in COSTS.items()},
        }


METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
COSTS: dict[str, Callable[[Record], float | None]] = {
    "seconds_per_iteration": lambda cell: cell.seconds_per_iteration,
    "loss_ms": lambda cell: cell.loss_ms,
    "classification_loss_ms": lambda cell: cell.classification_loss_ms,
    "classification_loss_share": lambda cell: cell.classification_loss_share,
    "data_seconds_per_iteration": lambda cell: cell.data_seconds_per_iteration,
    "images_per_second": lambda cell: cell.images_per_second,
    "peak_memory_bytes": lambda cell: cell.peak_memory_bytes,
}


def unbucketed_name(loss: str) -> str | None:
    """The loss that compares every pair for the objective of a bucketed or exact one."""
    objective, algorithm = LOSS_NAMES.get(loss, (None, None))
    if objective is None or algorithm == "loop":
        return None
    return next(n for n, (o, a) in LOSS_NAMES.items() if o == objective and a == "loop")


def summarise(records: Sequence[Record]) -> list[Row]:
    """Rows in the order of the records, detector by detector, from the finished cells."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for config in dict.fromkeys(record.config for record in records):
        for record in records:
            if record.config == config and record.state == FINISHED:
                groups.setdefault((config, record.loss), []).append(record)
    rows = {pair: Row(*pair, tuple(cells)) for pair, cells in groups.items()}
    return [
        Row(
            config,
            loss,
            row.cells,
            unbucketed=rows.get((config, unbucketed_name(loss))),
            score=rows.get((config, SCORE_LOSS)) if loss != SCORE_LOSS else None,
        )
        for (config, loss), row in rows.items()
    ]
