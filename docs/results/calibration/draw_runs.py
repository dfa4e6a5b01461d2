"""Reliability diagrams of runs: python draw_runs.py DATASET OUT NAME=RUN_DIR ...

OUT-scores.png has those of the model's scores side by side, OUT-calibrated.png those of calibrated
ones: on a run's own validation data by the map of the other half of the pictures, on other data by
the run's map.
"""

import sys

from bucketed_ranking.data.catalog import register
from bucketed_ranking.engine.calibration import MatchedDetections, cross_fitted
from bucketed_ranking.engine.evaluation import evaluate_model
from bucketed_ranking.engine.inference import load_detector
from bucketed_ranking.engine.reliability_plot import draw_reliability
from bucketed_ranking.engine.run_calibration import measure

dataset, out, *runs = sys.argv[1:]
diagrams: dict[str, dict] = {"scores": {}, "calibrated": {}}
for name, folder in (run.split("=", 1) for run in runs):
    detector = load_detector(folder, device="cpu")
    register(dataset)
    found: list[MatchedDetections] = []
    evaluate_model(
        detector.cfg, detector.model, dataset, detector.run_dir / "drawn", on_matched=found.append
    )
    (matched,) = found
    fitted = detector.calibration
    own = dataset in detector.cfg.DATASETS.TEST
    calibrated = (
        cross_fitted(matched, fitted.score_map.method) if own else fitted.score_map(matched.scores)
    )
    print(name, fitted.score_map.method, len(matched.right), int(matched.right.sum()))
    print("best F1 at", fitted.threshold(raw=True), "calibrated", fitted.threshold())
    print({k: round(v, 3) for k, v in measure(matched, fitted.best_f1, calibrated).items()})
    diagrams["scores"][name] = matched.scores, matched.right
    diagrams["calibrated"][f"{name}, calibrated"] = calibrated, matched.right
for kind, panels in diagrams.items():
    draw_reliability(panels, f"{out}-{kind}.png")
