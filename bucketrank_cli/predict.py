"""`bucketrank predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import INTERRUPTED, Device, Weights, say

if TYPE_CHECKING:
    from rich.console import Console

    from bucketed_ranking import Prediction, Progress
    from bucketed_ranking.console import ProgressDisplay


def predict(
    run_dir: Annotated[Path, typer.Argument(help="A run's folder.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Pictures, videos, folders of them, patterns such as 'photos/**/*.jpg', the "
            "camera webcam:0, or a stream's address such as rtsp://camera/video."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for pictures, videos and predictions.json.")],
    weights: Weights = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(
            help="Leave out what scores less, in 0..1; left out, the run's best (F1 on val)."
        ),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            help="Instead: leave out what scores too little for this share of right ones on val."
        ),
    ] = None,
    raw_scores: Annotated[
        bool,
        typer.Option("--raw-scores", help="Scores of the model, not how likely it is right."),
    ] = False,
    batch_size: Annotated[
        int, typer.Option(help="Frames, or pictures of the same size, to look at together.")
    ] = 1,
    device: Device = None,
) -> None:
    """Detect objects in pictures and videos: draw them, and write COCO results.

    Ctrl-C ends it after the picture or frame that is under way, and the video can be played.
    """
    from bucketed_ranking.detectron2_setup import require_detectron2

    require_detectron2("Prediction")
    from rich.console import Console

    from bucketed_ranking import Detector
    from bucketed_ranking.console import ProgressDisplay
    from bucketed_ranking.engine.processes import StopRequest

    detector = Detector(
        run_dir,
        weights=weights,
        device=device,
        threshold=score_threshold,
        precision=precision,
        raw_scores=raw_scores,
    )
    if not detector.calibrated and not raw_scores:
        say(
            "Scores are the model's own, not how likely it is right: these weights were not "
            "evaluated on the validation data of the run, or found too little there."
        )
    say(
        f"Detecting by {detector.trained.describe_weights()}; what scores "
        f"{detector.threshold:.2f} or more is kept"
    )
    console = Console()
    with StopRequest() as stop, ProgressDisplay(None, console) as display:
        found = detector.predict(
            sources,
            out,
            batch_size=batch_size,
            on_progress=lambda progress: _show(console, display, progress),
            stop=lambda: stop.received is not None,
        )
    _report(found)
    if found.stopped:
        raise typer.Exit(INTERRUPTED)


def _show(console: "Console", display: "ProgressDisplay", progress: "Progress") -> None:
    from bucketed_ranking.console import say as print_above
    from bucketed_ranking.engine.sources import describe_source, is_video

    name, done, total = describe_source(progress.source), progress.done, progress.total
    if is_video(progress.source):
        speed = f"{progress.per_second:.1f} frames a second"
        line = f"{name}: {done}{'' if total is None else f' of {total}'} frames, {speed}"
        display.show(done, line, f"{name}, {speed}", total)
        return
    print_above(console, f"{name}: {progress.objects} objects")
    if console.is_terminal:
        display.show(done, "", f"{progress.per_second:.1f} pictures a second", total)


def _report(found: "Prediction") -> None:
    for path, reason in found.unreadable.items():
        say(f"Skipped {path}: {reason}")
    for path, (done, total) in found.cut_off.items():
        if total is None:
            say(f"{path} ended by itself, after {done} frames")
        else:
            say(f"{path} is cut off or damaged: {done} of its {total} frames could be read")
    counts = {"picture": found.pictures, "video frame": found.frames, "object": found.objects}
    *read, objects = (f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items())
    read = [each for each in read if not each.startswith("0 ")]
    say(
        f"{'Stopped: ' if found.stopped else ''}{' and '.join(read) or 'nothing'} with "
        f"{objects}, and predictions.json, are in {found.folder}"
    )
