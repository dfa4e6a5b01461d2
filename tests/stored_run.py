"""The folder of a run as a training leaves it, evaluated on detections that are given."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from bucketed_ranking.data.catalog import register
from bucketed_ranking.data.registry import find_dataset
from bucketed_ranking.engine import evaluation
from bucketed_ranking.engine.run_folder import evaluation_folder
from bucketed_ranking.engine.setup import set_num_classes
from tests.small_detectors import narrow_config


class Listed(nn.Module):
    """Gives the detections of a list: x, y, width, height, score, class by picture."""

    def __init__(self, detections: Mapping[int, Sequence[Sequence[float]]], score_map=None):
        super().__init__()
        self.detections, self.score_map = detections, score_map

    def forward(self, batch):
        outputs = []
        for inputs in batch:
            rows = torch.tensor(self.detections.get(inputs["image_id"], []), dtype=torch.float32)
            rows = rows.reshape(-1, 6)
            boxes = torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:4]], dim=1)
            scores = rows[:, 4]
            if self.score_map is not None:
                scores = torch.from_numpy(self.score_map(scores.numpy()))
            found = Instances((inputs["height"], inputs["width"]))
            found.pred_boxes, found.scores = Boxes(boxes), scores
            found.pred_classes = rows[:, 5].long()
            outputs.append({"instances": found})
        return outputs


def write_run(
    folder: Path,
    dataset: str,
    model: nn.Module,
    *,
    detector: str = "retinanet_tiny",
    metrics: Sequence[dict[str, Any]] = (),
    command: Sequence[str] = ("bucketrank", "train", "retinanet_tiny"),
) -> dict[str, Any]:
    """Write a finished run without weights; returns the content of its results.json."""
    info = register(dataset)
    cfg = narrow_config(detector, "brs", "SOLVER.MAX_ITER", "4")
    set_num_classes(cfg, info.num_classes)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (dataset,)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    output = evaluation_folder(folder, dataset)
    tasks = evaluation.evaluate_model(cfg, model, dataset, output)
    results = {
        "loss": "brs", "dataset": dataset, "iterations": 4, "seconds_per_iteration": 0.1,
        "images_per_second": 20.0, "peak_memory_bytes": 1, "loss_ms_per_iteration": None,
        "classification_loss_ms_per_iteration": None, "final_losses": {},
        "best": {"iterations": 2, "bbox/AP": 99.9}, **tasks,
    }  # fmt: skip
    evaluation.write_results(folder / "results.json", results)
    entries = {dataset: find_dataset(dataset).as_dict()}
    run = {
        "command": list(command), "seed": 1, "device": "cpu", "device_name": "A Processor",
        "threads": 1, "processes": 1, "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:01:00+00:00", "versions": {"python": "3.12", "torch": None},
        "class_names": info.class_names, "category_ids": info.category_ids,
        "datasets": {dataset: info.as_dict()}, "entries": entries,
        "iterations": 4, "state": "finished", "stopped_early_after": 0,
    }  # fmt: skip
    evaluation.write_results(folder / "run.json", run)
    (folder / "metrics.json").write_text("".join(f"{json.dumps(row)}\n" for row in metrics))
    return json.loads((folder / "results.json").read_text())
