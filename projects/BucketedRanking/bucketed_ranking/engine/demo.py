"""The main job in small: one detector, two losses, the embedded data set, one table, pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image, ImageDraw

from ..data.draw import draw_boxes
from . import runs, setup
from .inference import best_threshold, detect, labelled_boxes, load_detector

CONFIG = "retinanet_tiny"
DATASET = "shapes"
_MARGIN, _CAPTION = 8, 24


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
        if not runs.is_finished(run_dir, cfg.SOLVER.MAX_ITER):
            runs.train(cfg, resume=runs.is_run(run_dir), profile=True)
        results[loss] = runs.read_json(run_dir / runs.RESULTS)
    return results


def draw_comparison(losses: Sequence[str], output: Path, num_images: int = 4) -> Path:
    """Draw ground truth and the detections of every loss side by side, a row an image.

    Each detector's boxes are drawn above its own best score threshold.

    Returns:
        The picture's path, `output`/detections.png.
    """
    detectors = {loss: load_detector(str(output / f"{CONFIG}-{loss}")) for loss in losses}
    thresholds = {loss: best_threshold(d.run_dir) for loss, d in detectors.items()}
    name = next(iter(detectors.values())).cfg.DATASETS.TEST[0]
    class_names = MetadataCatalog.get(name).thing_classes
    rows = []
    # The pictures with most objects say most.
    dicts = sorted(DatasetCatalog.get(name), key=lambda d: -len(d["annotations"]))[:num_images]
    for dataset_dict in dicts:
        image = read_image(dataset_dict["file_name"], format="RGB")
        row = {"ground truth": _draw(image, _ground_truth(dataset_dict), class_names)}
        for loss, detector in detectors.items():
            bgr = detector.cfg.INPUT.FORMAT == "BGR"
            instances = detect(detector, image[:, :, ::-1] if bgr else image)
            kept = instances[instances.scores >= thresholds[loss]]
            row[loss] = _draw(image, kept, class_names)
        rows.append(row)
    path = output / "detections.png"
    _montage(rows).save(path)
    return path


def _ground_truth(dataset_dict: dict[str, Any]) -> Instances:
    annotations = dataset_dict["annotations"]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return Instances(
        (dataset_dict["height"], dataset_dict["width"]),
        pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        pred_classes=torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64),
    )


def _draw(image: np.ndarray, instances: Instances, class_names: Sequence[str]) -> Image.Image:
    boxes = labelled_boxes(instances, class_names)
    return draw_boxes(Image.fromarray(image), boxes, len(class_names), short_side=400)


def _montage(rows: Sequence[dict[str, Image.Image]]) -> Image.Image:
    width = max(picture.width for row in rows for picture in row.values()) + _MARGIN
    heights = [max(p.height for p in row.values()) + _CAPTION + _MARGIN for row in rows]
    sheet = Image.new("RGB", (width * len(rows[0]) + _MARGIN, sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, (caption, picture) in enumerate(row.items()):
            left = _MARGIN + column * width
            pen.text((left, top + 4), caption, fill="black", font_size=16)
            sheet.paste(picture, (left, top + _CAPTION))
        top += height
    return sheet
