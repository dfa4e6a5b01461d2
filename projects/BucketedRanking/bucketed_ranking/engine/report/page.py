"""The page of a report: what is known of a run and of one evaluation of it."""

import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from jinja2 import Environment, StrictUndefined

from ...console import number
from ...html_page import data_uri, html_page
from ...published import TASKS
from ..calibration import MatchedDetections, ScoreMap, cross_fitted, fit_score_map
from ..run_folder import RECORD, read_config, read_json, read_metrics
from ..run_records import Record, read_run
from .errors import KINDS, confusion_matrix, cost_of_errors
from .matches import Picture, average_precision, class_curves
from .pictures import worst_pictures
from .plots import (
    MOST_CURVES,
    f1_over_score,
    over_iterations,
    precision_recall,
    reliability_diagram,
)

# Rows of the confusion matrix, where there are more classes: those that are confused most.
_MOST_CONFUSED = 12
_TEMPLATE = Path(__file__).with_name("page.html")
_STYLE = Path(__file__).with_name("page.css")
_EXPLAINED = {
    "class": "right place, wrong class",
    "location": "right class, but the box fits badly (IoU 0.1 to 0.5)",
    "both": "near an object of another class (IoU 0.1 to 0.5)",
    "duplicate": "an object that a better detection has found already",
    "background": "a box where nothing is (IoU below 0.1)",
    "missed": "an object that nothing has found, not even with an error above",
}


def render(
    run_dir: Path,
    results: Mapping[str, Any],
    weights: str,
    pictures: Sequence[Picture] | None,
    score_map: ScoreMap | None,
) -> str:
    """The page as HTML.

    Args:
        results: of an evaluation of the run, as its results.json has them.
        weights: which were evaluated, in words.
        pictures: what it found; None: not known.
        score_map: the calibration of the weights; None: there is none. On the validation data of
            the run it is fitted on the pictures, as it was when they were evaluated.
    """
    cfg, run = read_config(run_dir), read_json(run_dir / RECORD)
    record = read_run(run_dir, cfg.SOLVER.MAX_ITER)
    assert record is not None
    best = results.get("best")
    tasks = {word: results[task] for task, word in TASKS.items() if task in results}
    title = f"{cfg.MODEL.META_ARCHITECTURE} with {cfg.MODEL.RANKING.LOSS} on {results['dataset']}"
    content = {
        "title": title,
        "weights": weights,
        "best": best if best and best["iterations"] != record["iterations"] else None,
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "metrics": [name for name in next(iter(tasks.values())) if name.startswith("AP")],
        "tasks": tasks,
        "training": _training(record["curves"], read_metrics(run_dir)),
        "facts": _facts(cfg, run, record, results["dataset"]),
        "versions": run.get("versions", {}),
        "command": command_line(run.get("command", [])),
        "found": None,
        "names": run["class_names"],
    }
    if pictures is not None:
        own = results["dataset"] in cfg.DATASETS.TEST
        content |= _found(pictures, run["class_names"], results, score_map, own)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "picture": data_uri}
    body = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(content)
    return html_page(title, body, _STYLE.read_text(encoding="utf-8"))


def _found(
    pictures: Sequence[Picture],
    names: Sequence[str],
    results: Mapping[str, Any],
    score_map: ScoreMap | None,
    own: bool,
) -> dict[str, Any]:
    """What follows from single detections; `own`: those on the validation data of the run."""
    matched = MatchedDetections(
        np.concatenate([np.full(len(p.scores), p.id) for p in pictures] or [np.empty(0, int)]),
        np.concatenate([p.scores for p in pictures] or [np.empty(0)]),
        np.concatenate([p.match >= 0 for p in pictures] or [np.empty(0, bool)]),
    )
    fitted = fit_score_map(matched) if own else score_map
    probability = fitted or (lambda scores: scores)
    curves = class_curves(pictures, len(names))
    best = results["bbox"].get("score_threshold")
    threshold = math.inf if best is None or math.isnan(best) else best
    shown = None if math.isinf(threshold) else float(probability(np.array(threshold)))
    label = "score: how likely a detection is right" if fitted else "score, not calibrated"
    ap50 = {n: average_precision(*each) for n, each in zip(names, curves, strict=True)}
    known = sorted((n for n in ap50 if not math.isnan(ap50[n])), key=ap50.__getitem__)
    chosen = [name for name in ap50 if name in known[:MOST_CURVES]]
    drawn = {n: curve for n, (curve, _) in zip(names, curves, strict=True) if n in known}
    costs = cost_of_errors(pictures, len(names))
    worst = max(KINDS, key=lambda kind: max(0, costs[kind].gain))
    matrix = confusion_matrix(pictures, len(names), threshold)
    found = {
        "num_pictures": len(pictures),
        "num_objects": sum(count for _, count in curves),
        "num_detections": len(matched.scores),
        "num_kept": int(matrix[:, :-1].sum()),
        "precision": _share(int(np.trace(matrix[:-1, :-1])), int(matrix[:, :-1].sum())),
        "recall": _share(int(np.trace(matrix[:-1, :-1])), int(matrix[:-1].sum())),
        "threshold": shown,
        "calibrated": fitted is not None,
        "errors": [
            {"kind": kind, "explained": _EXPLAINED[kind], "count": count, "gain": gain}
            for kind, (count, gain) in costs.items()
        ],
        "worst_kind": worst,
        "worst_explained": _EXPLAINED[worst],
        "most_gain": max((cost.gain for cost in costs.values() if cost.gain > 0), default=0.0),
        "only_lowest": len(known) > MOST_CURVES and MOST_CURVES,
        "precision_recall": precision_recall(drawn, chosen) if matched.scores.size else None,
        "f1": f1_over_score(drawn, chosen, probability, shown, label)
        if matched.scores.size
        else None,
        "confusion": _confusion(matrix, names),
        "reliability": _reliability(matched, fitted, own),
        "worst": worst_pictures(pictures, names, threshold, probability),
    }
    rows = [
        {
            "objects": count,
            "ap50": ap50[name],
            "precision": _share(matrix[index, index], matrix[:, index].sum()),
            "recall": _share(matrix[index, index], matrix[index].sum()),
        }
        for index, (name, (_, count)) in enumerate(zip(names, curves, strict=True))
    ]
    return {"found": found, "rows": rows}


def _confusion(matrix: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Rows of numbers, each with its share of the row; the most confused classes where many."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
    total = (wrong.sum(axis=0) + wrong.sum(axis=1))[:-1]
    order = np.argsort(-total, kind="stable")[:_MOST_CONFUSED]
    chosen = [*sorted(order.tolist()), len(names)]
    labels = [*names, "background"]
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return {
        "labels": [labels[index] for index in chosen],
        "rows": [
            [(int(matrix[i, j]), round(float(share[i, j]), 3)) for j in chosen] for i in chosen
        ],
        "left_out": len(names) + 1 - len(chosen),
    }


def _reliability(matched: MatchedDetections, score_map: ScoreMap | None, own: bool) -> list[bytes]:
    """Diagrams of scores, and of calibrated ones: by the map or, where it is fitted on these very
    detections (`own`), by that of the other half of the pictures."""
    if not matched.scores.size:
        return []
    diagrams = [reliability_diagram("the model's scores", matched.scores, matched.right)]
    if score_map is not None:
        of_half = cross_fitted(matched, score_map.method) if own else score_map(matched.scores)
        diagrams.append(reliability_diagram("calibrated", of_half, matched.right))
    return diagrams


def _training(
    aps: Mapping[str, Sequence[tuple[int, float]]], rows: Sequence[Record]
) -> list[tuple[str, bytes]]:
    """Captions and pictures of what was measured while it was trained."""
    losses: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name == "total_loss" or name.startswith("loss_"):
                losses.setdefault(name, []).append((row["iteration"] + 1, value))
    curves = {f"{TASKS[task]} AP": points for task, points in aps.items()}
    kinds = (("Losses", "loss", losses), ("AP on the validation data", "AP (%)", curves))
    return [(caption, over_iterations(lines, unit)) for caption, unit, lines in kinds if lines]


def _facts(cfg: CfgNode, run: Mapping[str, Any], record: Record, dataset: str) -> dict[str, str]:
    """What was trained, on what, and where, in words."""
    sizes = {}
    for name, info in run.get("datasets", {}).items():
        skipped = sum(info.get("skipped", {}).values())
        left_out = f"; {skipped} records left out" if skipped else ""
        sizes[name] = (
            f"{name}: {info['num_images']} pictures, {info['num_annotations']} boxes, "
            f"{info['num_classes']} classes{left_out}"
        )
    ended = {"finished": "finished", "training": "not finished", "interrupted": "was stopped"}
    state = ended.get(record["state"], record["state"])
    if waited := run.get("stopped_early_after"):
        state = f"stopped early: {waited} evaluations without a better AP"
    image = (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST)
    facts = {
        "Detector": cfg.MODEL.META_ARCHITECTURE,
        "Loss": cfg.MODEL.RANKING.LOSS,
        "Trained on": "; ".join(sizes.get(name, name) for name in cfg.DATASETS.TRAIN),
        "Validated on": "; ".join(sizes.get(name, name) for name in cfg.DATASETS.TEST),
        "Training": f"{record['iterations']} of {cfg.SOLVER.MAX_ITER} iterations, {state}",
        "Pictures a step": str(cfg.SOLVER.IMS_PER_BATCH),
        "Shorter side": f"{', '.join(map(str, image[0]))} pixels in training, {image[1]} in tests",
        "Learning rate": f"{cfg.SOLVER.BASE_LR:g}",
        "Initial weights": cfg.MODEL.WEIGHTS or "random",
        "Seed": str(run.get("seed")),
        "Device": f"{run.get('device_name') or run.get('device')}, {run.get('processes')} "
        f"processes, {run.get('threads')} threads",
        "Started": str(run.get("started")),
    }
    if dataset not in cfg.DATASETS.TEST:
        facts["Evaluated on"] = sizes.get(dataset, dataset)
    if run.get("error"):
        facts["Error"] = run["error"]
    if commit := run.get("git_commit"):
        facts["Commit"] = commit
    return facts


def command_line(command: Sequence[str]) -> str:
    """A command as it can be typed again; that of a module or a script's path is `bucketrank`."""
    if not command:
        return ""
    name = Path(command[0]).name
    known = name in ("bucketrank", "__main__.py")
    return shlex.join(["bucketrank" if known else command[0], *command[1:]])


def _share(part: int, whole: int) -> float:
    return 100 * part / whole if whole else math.nan
