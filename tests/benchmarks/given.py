"""Profiles whose times are given, so that what is made of them is known."""

from bucketed_ranking.benchmarks.loss_profile import describe_timings
from bucketed_ranking.benchmarks.timing import Timing

TOO_SLOW = "predicted to take 99 s a call; at most 20 s wanted"


def timing(loss: str, *seconds: float, skipped: str | None = None) -> Timing:
    return Timing(loss, list(seconds), None if skipped else 4_000_000, skipped=skipped)


def case(
    regime: str | None = "start",
    positives: int = 100,
    negatives: int = 900,
    scale: float = 1,
    timings: list[Timing] | None = None,
) -> dict:
    """Times that make every ratio easy: the loop 8 s, bucketed 2 s, exact 1 s, focal 0.5 s."""
    timings = timings or [
        timing("rs", 7 * scale, 8 * scale, 20 * scale),
        timing("brs", 2 * scale, 2 * scale, 2 * scale),
        timing("rs-exact", 0.5 * scale, scale, 1.5 * scale),
        timing("ap", skipped=TOO_SLOW),
        timing("ap-exact", scale, scale),
        timing("focal", 0.5 * scale, 0.5 * scale, 0.5 * scale),
        timing("sort", 0.25 * scale),
    ]
    return {
        "name": f"{regime}: P = {positives:,}, N = {negatives:,}",
        "regime": regime,
        "grid_negatives": negatives if regime else None,
        "positives": positives,
        "negatives": negatives,
        "relevant_negatives": 10,
        "logits_shape": [positives + negatives, 1],
        "entries": describe_timings(timings, positives + negatives),
    }


def profile(*cases: dict) -> dict:
    machine = {
        "cpu": "Some CPU", "cores": 2, "threads": 2, "device": "cpu", "gpu": None, "cuda": None,
        "system": "Linux 6", "dtype": "float32", "python": "3.11.0", "bucketrank": "0.1.0",
        "torch": "2.15.0", "fvcore": "0.1.5",
    }  # fmt: skip
    date = "2026-11-22T12:00:00+00:00"
    return {"date": date, "machine": machine, "cases": list(cases or (case(),))}
