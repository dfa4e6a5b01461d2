"""Options and output that several commands share."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from bucketed_ranking import Evaluation, Training

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells give it, where files are left."""

_NEGATIVE = re.compile(r"-\.?\d")

Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, ...; left out, CUDA where there is a GPU, else the CPU."),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="best, last, or a checkpoint's path or address; left out, the run's best on val."
    ),
]
ConfigOptions = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY VALUE]...", help="Detectron2 config keys, such as SOLVER.MAX_ITER 2000."
    ),
]


class ConfigCommand(TyperCommand):
    """A command with KEY VALUE pairs, of which a value may be a negative number.

    Click takes any word that begins with a hyphen for an option.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        before = ["-", *args]
        return super().parse_args(
            ctx,
            [
                f" {word}" if _NEGATIVE.match(word) and not previous.startswith("-") else word
                for previous, word in zip(before, args, strict=False)
            ],
        )


class Format(StrEnum):
    table = "table"
    json = "json"


OutputFormat = Annotated[
    Format, typer.Option("--format", help="A table for people, or JSON for programs.")
]


def whole_numbers(text: str, option: str, at_least: int = 1) -> list[int]:
    """Whole numbers from "100,1e6", each once.

    Raises:
        BucketRankError: there is none, or one of them is not a whole number or too small.
    """
    from bucketed_ranking.errors import BucketRankError

    numbers = []
    for word in text.split(","):
        try:
            value = float(word)
            count = int(value)
        except (ValueError, OverflowError):
            value, count = 0.0, at_least - 1
        if count < at_least or count != value:
            raise BucketRankError(
                f"{option} takes whole numbers from {at_least} on by commas, such as 1,20,1e6, not "
                f"{word.strip()!r}."
            )
        numbers.append(count)
    return list(dict.fromkeys(numbers))


def say(sentence: str, style: str | None = None) -> None:
    """Print a line, never folded: paths and commands stay whole to be copied."""
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(sentence, style=style or ""), soft_wrap=True)


def print_results(measured: "Evaluation | Training") -> None:
    """Print AP or the recall of proposals, in percent, as tables, and the calibration."""
    from rich.console import Console
    from rich.table import Table

    from bucketed_ranking.console import number

    console = Console()

    def print_row(title: str, values: Mapping[str, float]) -> None:
        table = Table(title=f"{title} (%) on {measured.dataset}", title_justify="left")
        for name in values:
            table.add_column(name, justify="right")
        table.add_row(*map(number, values.values()))
        console.print(table)

    recalls = measured.box_proposals
    for limit in dict.fromkeys(name.partition("@")[2] for name in recalls):
        which = {name: recall for name, recall in recalls.items() if name.endswith(f"@{limit}")}
        print_row(f"average recall of {limit} proposals", which)
    for task, found in (("bbox", measured.bbox), ("segm", measured.segm)):
        if found is None:
            continue
        print_row(f"{task} AP", found.summary)
        if found.per_class:
            classes = Table(title="AP per class", title_justify="left")
            classes.add_column("class")
            classes.add_column("AP", justify="right")
            for name, ap in found.per_class.items():
                classes.add_row(name, number(ap))
            console.print(classes)
    _print_calibration(measured.calibration)


def _print_calibration(measured: Mapping[str, float]) -> None:
    """Print in one line how far scores are from the share of right detections."""
    from bucketed_ranking.console import number

    parts = [
        f"{number(measured[key], 3)} of {which} scores"
        for key, which in (("error", "the model's"), ("error_calibrated", "calibrated"))
        if key in measured
    ]
    if parts:
        kept = [number(v, 3) for k, v in measured.items() if k.startswith("kept_")]
        say(
            f"Detection calibration error: {', '.join(parts)} "
            f"(from the best score threshold on: {', '.join(kept)})"
        )


def picture_size(text: str) -> tuple[int, int]:
    """Height and width of the "800x1333" that --image-size is given.

    Raises:
        BucketRankError: it is no such thing.
    """
    from bucketed_ranking.errors import BucketRankError

    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.strip().lower())
    if match is None:
        raise BucketRankError(f"--image-size takes HEIGHTxWIDTH, such as 800x1333, not {text!r}.")
    return int(match[1]), int(match[2])
