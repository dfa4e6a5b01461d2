"""Profiles whose times are given, so that what is made of them is known."""

from bucketed_ranking.profiling.report import CaseResult, Profile
from bucketed_ranking.profiling.timing import Entry, TimingOptions

TOO_SLOW = "predicted to take 99 s a call; at most 20 s wanted"


def entry(loss: str, *seconds: float, skipped: str | None = None) -> Entry:
    return Entry(loss, list(seconds), None if skipped else 4_000_000, skipped=skipped)


def result(
    regime: str | None = "start", positives: int = 100, negatives: int = 900, scale: float = 1
) -> CaseResult:
    """Times that make every ratio easy: the loop 8 s, bucketed 2 s, exact 1 s, focal 0.5 s."""
    entries = [
        entry("rs", 7 * scale, 8 * scale, 20 * scale),
        entry("brs", 2 * scale, 2 * scale, 2 * scale),
        entry("rs-exact", 0.5 * scale, scale, 1.5 * scale),
        entry("ap", skipped=TOO_SLOW),
        entry("ap-exact", scale, scale),
        entry("focal", 0.5 * scale, 0.5 * scale, 0.5 * scale),
        entry("sort", 0.25 * scale),
    ]
    name = f"{regime}: P = {positives:,}, N = {negatives:,}"
    grid_negatives = negatives if regime else None
    shape = (positives + negatives, 1)
    return CaseResult(name, regime, grid_negatives, positives, negatives, 10, shape, entries)


def profile(*cases: CaseResult) -> Profile:
    machine = {
        "cpu": "Some CPU", "cores": 2, "threads": 2, "device": "cpu", "gpu": None, "cuda": None,
        "system": "Linux 6", "dtype": "float32", "python": "3.11.0", "bucketrank": "0.1.0",
        "torch": "2.15.0", "fvcore": "0.1.5",
    }  # fmt: skip
    date = "2026-11-22T12:00:00+00:00"
    return Profile(machine, {"seed": 0}, TimingOptions(), date, list(cases or (result(),)))
