"""`report.html`: one page on a run, what its detector finds, and where it fails.

`matches` reads the detections that an evaluation has left and pairs them with the objects; `errors`
sorts and counts what is wrong; `plots` and `pictures` draw; `page` puts it together.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...data.files import write_atomically
from ...data.registry import members
from ...errors import BucketRankError
from ...published import TASKS
from .. import inference
from ..calibration import ScoreMap
from ..checkpoint import FINAL
from ..run_folder import RECORD, REPORT, RESULTS, evaluation_folder, read_json
from ..run_logging import run_logging
from .matches import load_pictures

logger = logging.getLogger(__name__)


def report_training(run_dir: Path) -> Path | None:
    """Write the report of a training that has just finished, on its own last evaluation.

    A failure is a warning, because the training has not failed.

    Returns:
        The file; None where it could not be written.
    """
    with run_logging(run_dir):
        try:
            results = read_json(run_dir / RESULTS)
            inference.register_of_run(read_json(run_dir / RECORD), results["dataset"])
            path = run_dir / REPORT
            weights = f"{run_dir / FINAL}.pth (after {results['iterations']} iterations)"
            _write(run_dir, results, evaluation_folder(run_dir, results["dataset"]), weights, path)
        except Exception as error:
            logger.info("No report:", exc_info=True)
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            logger.warning(
                "The report could not be written (%s). The training is done, and the rest is in "
                "%s; `bucketrank report` tries again.", why, run_dir
            )  # fmt: skip
            return None
    return path


def report_run(
    run_dir: Path,
    *,
    dataset: str | None = None,
    weights: str | None = None,
    device: str | None = None,
    output: Path | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write the report on the detector of a run, which is evaluated first if it has to be.

    What a finished training has evaluated last is not evaluated again.

    Args:
        dataset: a data set, or a pair of splits, of which the val split is taken; None takes the
            validation data of the run.
        weights, device: see :func:`load_detector`.
        output: None: report.html in the run's folder or, with a data set or weights, in that of
            their evaluation; one that is there is replaced.
        on_batch: see :func:`evaluate_model`.

    Returns:
        The file.

    Raises:
        BucketRankError: see :func:`load_detector` and :func:`evaluate`; `output` is there already.
    """
    if output is not None and output.exists():
        raise BucketRankError(f"There is {output} already; choose another --output.")
    detector = inference.load_detector(str(run_dir), weights=weights, device=device)
    name = members(dataset)[-1].name if dataset else detector.cfg.DATASETS.TEST[0]
    folder = inference.default_output(detector, name)
    if output is None:
        plain = dataset is None and weights is None
        output = (run_dir if plain else folder) / REPORT
    if results := _results_of_training(detector, run_dir, name):
        folder = evaluation_folder(run_dir, name)
    else:
        results = inference.evaluate(detector, name, folder, on_batch)
    score_map = detector.calibration and detector.calibration.score_map
    _write(run_dir, results, folder, detector.describe_weights(), output, score_map)
    return output


def _results_of_training(
    detector: inference.TrainedDetector, run_dir: Path, dataset: str
) -> dict[str, Any] | None:
    """What a finished training has measured last, if it is of these weights and this data set."""
    run = read_json(run_dir / RECORD)
    if run["state"] != "finished" or detector.iterations != run["iterations"]:
        return None
    if dataset not in detector.cfg.DATASETS.TEST or not (run_dir / RESULTS).is_file():
        return None
    info = inference.register_of_run(run, dataset)
    # The clean JSON has another name where labels or pictures have changed.
    same = run["datasets"][dataset]["json"] == str(info.json)
    there = evaluation_folder(run_dir, dataset).is_dir()
    return read_json(run_dir / RESULTS) if same and there else None


def _write(
    run_dir: Path,
    results: Mapping[str, Any],
    folder: Path,
    weights: str,
    path: Path,
    score_map: ScoreMap | None = None,
) -> None:
    """Write the report on an evaluation: its results, and the detections in its folder."""
    from .page import render  # with matplotlib, which detecting and starting a training do not need

    pictures = load_pictures(
        results["dataset"],
        folder,
        [task for task in TASKS if task in results],
        max(results[task].get("unreadable_images", 0) for task in TASKS if task in results),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that matplotlib's font does not have
        write_atomically(path, render(run_dir, results, weights, pictures, score_map))
