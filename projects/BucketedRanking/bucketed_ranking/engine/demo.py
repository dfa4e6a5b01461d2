"""The main job in small: one detector, two losses, the embedded data set, one table, pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.figure import Figure
from PIL import Image

from ..data.draw import LabelledBox, draw_boxes
from . import run_folder, runs, setup
from .detections import as_detections
from .inference import best_threshold, detect, load_detector
from .mapper import read_image
from .report import report_training

CONFIG = "retinanet_tiny"
DATASET = "shapes"
_PICTURES = 4
_SHORT_SIDE = 400


def train_losses(
    losses: Sequence[str], output: Path, *, seed: int, device: str | None, options: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Train and evaluate the tiny RetinaNet with each loss from one seed.

    A run that is finished in `output` is not run again; one that was interrupted goes on.

    Returns:
        The content of results.json by loss.
    """
    results = {}
    for loss in losses:
        cfg = setup.load_config(CONFIG, loss=loss, options=options, device=device)
        setup.configure_datasets(cfg, *setup.choose_datasets(cfg, DATASET, None, None))
        run_dir = output / f"{CONFIG}-{loss}"
        cfg.OUTPUT_DIR, cfg.SEED = str(run_dir), seed
        if not run_folder.is_finished(run_dir, cfg.SOLVER.MAX_ITER, cfg.SOLVER.PATIENCE):
            runs.train(cfg, resume=run_folder.is_run(run_dir), profile=True)
            report_training(run_dir)
        results[loss] = run_folder.read_json(run_dir / run_folder.RESULTS)
    return results


def draw_comparison(losses: Sequence[str], output: Path) -> Path:
    """Draw ground truth and the detections of every loss side by side, a row an image.

    Each detector's boxes are drawn above its own best score threshold.

    Returns:
        The picture's path, `output`/detections.png.
    """
    detectors = {loss: load_detector(str(output / f"{CONFIG}-{loss}")) for loss in losses}
    thresholds = {loss: best_threshold(d) for loss, d in detectors.items()}
    name = next(iter(detectors.values())).cfg.DATASETS.TEST[0]
    class_names = MetadataCatalog.get(name).thing_classes
    rows = []
    # The pictures with most objects say most.
    dicts = sorted(DatasetCatalog.get(name), key=lambda d: -len(d["annotations"]))[:_PICTURES]
    for dataset_dict in dicts:
        image = read_image(dataset_dict["file_name"], format="RGB")
        picture = Image.fromarray(image)
        truth = [
            LabelledBox(*a["bbox"], a["category_id"], class_names[a["category_id"]])
            for a in dataset_dict["annotations"]  # x, y, width, height, as in COCO's JSON
        ]
        row = {"ground truth": draw_boxes(picture, truth, len(class_names), _SHORT_SIDE)}
        for loss, detector in detectors.items():
            bgr = detector.cfg.INPUT.FORMAT == "BGR"
            instances = detect(detector, image[:, :, ::-1] if bgr else image)
            kept = instances[instances.scores >= thresholds[loss]]
            row[loss] = as_detections(kept, class_names, picture).draw(_SHORT_SIDE)
        rows.append(row)
    path = output / "detections.png"
    _draw_rows(rows).savefig(path)
    return path


def _draw_rows(rows: Sequence[dict[str, Image.Image]]) -> Figure:
    """Pictures in rows, each under its caption."""
    size = (4 * len(rows[0]), 3.4 * len(rows))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    pictures = [named for row in rows for named in row.items()]
    for axes, (caption, picture) in zip(grid.flat, pictures, strict=True):
        axes.imshow(picture)
        axes.set_title(caption)
        axes.axis("off")
    return figure
