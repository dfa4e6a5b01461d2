"""`bucketrank profile-loss`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import ConfigOptions, Device, say


def profile_loss(
    options: ConfigOptions = None,
    losses: Annotated[
        str, typer.Option(help="Ranking losses, focal, ce, and sort (one torch.sort), by commas.")
    ] = "rs,brs,rs-exact,ap,bap,ap-exact,alrp,alrp-exact,focal,ce,sort",
    positives: Annotated[str, typer.Option(help="Numbers of positives.")] = "100,1000,5000",
    negatives: Annotated[str, typer.Option(help="Numbers of negatives, 1e6 or so.")] = "1e5,1e6",
    regime: Annotated[
        str,
        typer.Option(help="start: all negatives are relevant; trained: few are; or both."),
    ] = "both",
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
    dtype: Annotated[
        str, typer.Option(help="Of the logits: float32, float64, float16 or bfloat16.")
    ] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Seed of all that is random.")] = 0,
    device: Device = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(
        "results/loss-profile"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace the results in it.")] = False,
) -> None:
    """Time the losses, and measure their memory, over numbers of positives and negatives."""
    from rich.console import Console

    from bucketed_ranking.profiling import job
    from bucketed_ranking.profiling.cases import make_grid, parse_counts
    from bucketed_ranking.profiling.steps import parse_losses
    from bucketed_ranking.profiling.timing import TimingOptions

    console = Console()
    request = job.Request(
        losses=parse_losses(losses),
        output=out,
        grid=make_grid(
            regime, parse_counts(positives, "--positives"), parse_counts(negatives, "--negatives")
        ),
        training_step=job.training_step(from_training, dataset, options or [], after),
        timing=TimingOptions(repeats, warmup, max_seconds),
        device=device,
        dtype=dtype,
        seed=seed,
        force=force,
    )
    job.profile_losses(request, console)
    say(f"Numbers and plots are in {out}.")
