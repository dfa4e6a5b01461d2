"""The rows of a table: cells of several seeds together, and what is compared with what."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..config import SCORE_LOSS
from ..engine.evaluation import METRICS
from ..engine.run_records import Record
from ..loss_styles import LABELS
from ..published import IMAGES_PER_RANKING, TASKS, PublishedRow, published
from .cell_records import FINISHED
from .loss_cases import loop_of

COSTS = (
    "seconds_per_iteration",
    "loss_ms",
    "classification_loss_ms",
    "classification_loss_share",
    "data_seconds_per_iteration",
    "images_per_second",
    "peak_memory_bytes",
)


@dataclass(frozen=True)
class Statistic:
    """Mean over `count` seeds and their sample standard deviation, which is None with one seed."""

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Statistic | None":
        """Of the values that are known; None where none is."""
        known = [value for value in values if value is not None]
        std = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.mean(known), std, len(known)) if known else None


@dataclass(frozen=True)
class Row:
    """One detector with one loss, variant and number of images in a ranking, over its seeds.

    Attributes:
        unbucketed: the row of the same objective without buckets and as many images a ranking.
        score: the row of the detector's own loss, likewise; without the variant where it has none.
        unchanged: of a variant, the row without it.
        label: the loss in words, with the variant, and with the number where rows differ in it.
        number: of the variant in its table, from 1; 0: none.
    """

    config: str
    loss: str
    variant: str
    images_per_ranking: int | None
    cells: tuple[Record, ...]
    unbucketed: "Row | None" = None
    score: "Row | None" = None
    unchanged: "Row | None" = None
    label: str = ""
    number: int = 0

    def statistic(self, name: str) -> Statistic | None:
        """Of a number of each cell, such as "bbox_AP"."""
        return Statistic.of([cell.get(name) for cell in self.cells])

    def difference(self, other: "Row | None", name: str) -> Statistic | None:
        """This row's number less the other's, seed by seed over the seeds that both have."""
        theirs = {cell["seed"]: cell.get(name) for cell in other.cells} if other else {}
        pairs = [(cell.get(name), theirs.get(cell["seed"])) for cell in self.cells]
        return Statistic.of([a - b for a, b in pairs if a is not None and b is not None])

    def speed_up(self) -> float | None:
        """How many times less time an iteration takes than without buckets."""
        own = self.statistic("seconds_per_iteration")
        other = self.unbucketed and self.unbucketed.statistic("seconds_per_iteration")
        return other.mean / own.mean if own and other else None

    @property
    def published(self) -> PublishedRow | None:
        """The paper's row, where this one was trained on its data set or on none, but timed.

        A variant is not what the paper trained.
        """
        row = None if self.variant else published(self.config, self.loss)
        own = row.dataset.lower().split()[0] if row else ""
        names = [cell["dataset"] or own for cell in self.cells]
        return row if all(name.lower().startswith(own) for name in names) else None

    @property
    def ranks_as_published(self) -> bool:
        """Whether a ranking spans as many images as the paper's."""
        return self.images_per_ranking == IMAGES_PER_RANKING

    def as_dict(self) -> dict[str, Any]:
        """What a report says of this row, in plain types; numbers as mean, std and count."""
        tasks = [task for task in TASKS if self.statistic(f"{task}_AP")]
        names = [*(f"{task}_{name}" for task in tasks for name in METRICS), *COSTS]
        numbers = {name: self.statistic(name) for name in names}
        for task in tasks:
            for other in ("unbucketed", "score", "unchanged"):
                difference = self.difference(getattr(self, other), f"{task}_AP")
                numbers[f"{task}_AP_difference_from_{other}"] = difference
        return {
            "config": self.config,
            "loss": self.loss,
            "variant": self.variant,
            "images_per_ranking": self.images_per_ranking,
            "seeds": [cell["seed"] for cell in self.cells],
            "speed_up": self.speed_up(),
            **{name: value and vars(value) for name, value in numbers.items()},
        }


def make_rows(records: Sequence[Record]) -> list[Row]:
    """The rows of the records, detector by detector; cells of another number of images in a
    ranking are never in one row, nor compared."""
    keys = [(r["config"], r["loss"], r["variant"], r["images_per_ranking"]) for r in records]
    configs = list(dict.fromkeys(record["config"] for record in records))
    variants = list(dict.fromkeys(["", *(record["variant"] for record in records)]))
    rows = {
        key: Row(*key, tuple(r for r, k in zip(records, keys, strict=True) if k == key))
        for key in sorted(dict.fromkeys(keys), key=lambda key: configs.index(key[0]))
    }
    several = {c for c in configs if len({key[3] for key in rows if key[0] == c}) > 1}

    def with_others(row: Row) -> Row:
        def other(loss: str | None, *variants: str) -> Row | None:
            keys = [(row.config, loss, variant, row.images_per_ranking) for variant in variants]
            return next((rows[key] for key in keys if key in rows and rows[key] is not row), None)

        variant = f", {row.variant}" if row.variant else ""
        number = f", {row.images_per_ranking} a ranking" if row.config in several else ""
        return replace(
            row,
            unbucketed=other(loop_of(row.loss), row.variant),
            score=other(SCORE_LOSS, row.variant, "") if row.loss != SCORE_LOSS else None,
            unchanged=other(row.loss, "") if row.variant else None,
            label=LABELS[row.loss] + variant + number,
            number=variants.index(row.variant),
        )

    return [with_others(row) for row in rows.values()]


def finished_rows(records: Sequence[Record]) -> list[Row]:
    """The rows of the finished cells."""
    return make_rows([record for record in records if record["state"] == FINISHED])
