"""`bucketrank profile-loss`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ConfigOptions, Device, say, whole_numbers

if TYPE_CHECKING:
    from rich.console import Console


class Regime(StrEnum):
    start = "start"
    trained = "trained"
    both = "both"


class Dtype(StrEnum):
    float32 = "float32"
    float64 = "float64"
    float16 = "float16"
    bfloat16 = "bfloat16"


def profile_loss(
    options: ConfigOptions = None,
    losses: Annotated[
        str, typer.Option(help="Ranking losses, focal, ce, and sort (one torch.sort), by commas.")
    ] = "rs,brs,rs-exact,ap,bap,ap-exact,alrp,alrp-exact,focal,ce,sort",
    positives: Annotated[str, typer.Option(help="Numbers of positives.")] = "100,1000,5000",
    negatives: Annotated[str, typer.Option(help="Numbers of negatives, 1e6 or so.")] = "1e5,1e6",
    regime: Annotated[
        Regime, typer.Option(help="start: all negatives are relevant; trained: few are; or both.")
    ] = Regime.both,
    from_training: Annotated[
        str | None,
        typer.Option(metavar="CONFIG", help="Take logits from training this detector instead."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="With --from-training: data set; left out, the config's own.")
    ] = None,
    after: Annotated[
        int, typer.Option(min=0, help="With --from-training: iterations before the step.")
    ] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each loss.")] = 7,
    warmup: Annotated[int, typer.Option(min=0, help="Calls before, which do not count.")] = 2,
    max_seconds: Annotated[
        float,
        typer.Option(min=0.001, help="A loss that takes longer a call is skipped and marked."),
    ] = 20.0,
    dtype: Annotated[Dtype, typer.Option(help="Type of the logits.")] = Dtype.float32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all that is random.")] = 0,
    device: Device = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(
        "results/loss-profile"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace the results in it.")] = False,
) -> None:
    """Time the losses, and measure their memory, over numbers of positives and negatives."""
    from rich.console import Console

    from bucketed_ranking.benchmarks.loss_cases import make_grid
    from bucketed_ranking.benchmarks.loss_profile import profile_losses
    from bucketed_ranking.benchmarks.timing import TimingOptions
    from bucketed_ranking.errors import BucketRankError

    step = None
    if from_training is not None:
        step = {"config": from_training, "dataset": dataset, "options": options or []}
        step["after"] = after
    elif dataset is not None or options or after:
        raise BucketRankError(
            "--dataset, --after and KEY VALUE pairs describe a step of training; they go with "
            "--from-training CONFIG."
        )
    console = Console()
    profile = profile_losses(
        _losses(losses),
        out,
        console,
        grid=make_grid(
            regime,
            sorted(whole_numbers(positives, "--positives")),
            sorted(whole_numbers(negatives, "--negatives")),
        ),
        training_step=step,
        options=TimingOptions(repeats, warmup, max_seconds),
        device=device,
        dtype=dtype,
        seed=seed,
        force=force,
    )
    print_profile(profile, console)
    say(f"Numbers and plots are in {out}.")


def _losses(text: str) -> list[str]:
    """Names of losses from "rs,brs,focal", each once."""
    from bucketed_ranking.benchmarks.loss_cases import ALL_LOSSES
    from bucketed_ranking.errors import BucketRankError

    names = list(dict.fromkeys(word.strip() for word in text.split(",")))
    for name in names:
        if name not in ALL_LOSSES:
            raise BucketRankError(
                f"There is no loss {name!r} to profile; choose among {', '.join(ALL_LOSSES)}."
            )
    return names


def print_profile(profile: dict[str, Any], console: "Console") -> None:
    """One table a case, under it what was skipped, and at the end the machine."""
    from bucketed_ranking.benchmarks.loss_profile import machine_in_words
    from bucketed_ranking.benchmarks.output import Table

    for case in profile["cases"]:
        share = case["relevant_negatives"] / max(1, case["negatives"])
        facts = f"logits {case['logits_shape']}, {share:.1%} of the negatives relevant"
        say(f"\n{case['name']}; {facts}")
        Table.of(case["entries"], _COLUMNS, left=1).print(console)
        for entry in case["entries"]:
            if entry["skipped"]:
                say(f"{entry['loss']} skipped: {entry['skipped']}")
    what = "ms: forward + backward, median; speed-up: over the loop of the same objective"
    say(f"\n{what}; MiB: peak extra memory.\n{machine_in_words(profile)}")


def _quartiles(entry: dict[str, Any]) -> str:
    if entry["median_s"] is None:
        return "skipped" if entry["skipped"] else "-"
    return " .. ".join(_significant(entry[f"quartile_{n}_s"], 1e3) for n in (1, 3))


def _significant(value: float | None, scale: float = 1) -> str:
    """Three digits; a dash for what is not known."""
    if value is None:
        return "-"
    return f"{scale * value:,.0f}" if scale * value >= 100 else f"{scale * value:.3g}"


_COLUMNS = {
    "loss": lambda entry: entry["loss"],
    "ms": lambda entry: _significant(entry["median_s"], 1e3),
    "quartiles": _quartiles,
    "speed-up": lambda entry: _significant(entry["times_faster_than_loop"]),
    "x focal": lambda entry: _significant(entry["times_focal"]),
    "MiB": lambda entry: _significant(entry["peak_extra_bytes"], 1 / 2**20),
    "B/logit": lambda entry: _significant(entry["peak_extra_bytes_per_logit"]),
}
