"""`bucketrank profile-loss`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import ConfigOptions, Device, say, whole_numbers


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
    profile_losses(
        _losses(losses),
        out,
        Console(),
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
