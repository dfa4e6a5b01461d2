"""CPU seconds of COCO and LVIS evaluation: pycocotools or lvis against faster-coco-eval.

    python docs/results/evaluation/time_evaluation.py bbox 5000
    python docs/results/evaluation/time_evaluation.py segm 1000
    python docs/results/evaluation/time_evaluation.py lvis 200

Loading detections, matching and accumulating are timed, reading the ground truth is not.
"""

import contextlib
import copy
import io
import json
import logging
import sys
import tempfile
import time

import numpy as np
import pycocotools.mask as mask_util
from faster_coco_eval import COCO, COCOeval_faster

WIDTH, HEIGHT = 640, 480


def made_up(num_images: int, num_classes: int, masks: bool) -> tuple[dict, list[dict]]:
    """Images with 7 objects and 100 detections each, three of which are near each object."""
    rng = np.random.default_rng(0)
    annotations, detections = [], []
    for image_id in range(1, num_images + 1):
        sizes = np.exp(rng.uniform(np.log(10), np.log(300), (7, 2)))
        boxes = np.concatenate([rng.uniform(0, [WIDTH, HEIGHT] - sizes), sizes], axis=1)
        classes = rng.integers(1, num_classes + 1, 7)
        found = boxes.repeat(3, axis=0)
        found += rng.normal(0, 0.08, found.shape) * found[:, [2, 3, 2, 3]]
        sizes = rng.uniform(5, 200, (79, 2))
        wrong = np.concatenate([rng.uniform(0, [WIDTH, HEIGHT] - sizes), sizes], axis=1)
        labels = np.concatenate([classes.repeat(3), rng.integers(1, num_classes + 1, 79)])
        for group, of_group, kept in (
            (boxes, classes, annotations),
            (np.concatenate([found, wrong]), labels, detections),
        ):
            runs = ellipses(group) if masks else [None] * len(group)
            for box, label, mask in zip(group.tolist(), of_group.tolist(), runs, strict=True):
                one = {"image_id": image_id, "category_id": label, "bbox": box}
                one |= {"score": rng.random()} if kept is detections else {}
                kept.append(one | ({"segmentation": mask} if masks else {}))
    for number, annotation in enumerate(annotations, start=1):
        area = annotation["bbox"][2] * annotation["bbox"][3]
        annotation |= {"id": number, "area": area, "iscrowd": 0}
    images = [
        {
            "id": number, "width": WIDTH, "height": HEIGHT, "not_exhaustive_category_ids": [],
            "neg_category_ids": rng.integers(1, num_classes + 1, 8).tolist(),
        }
        for number in range(1, num_images + 1)
    ]  # fmt: skip
    categories = [{"id": k, "frequency": "rcf"[k % 3]} for k in range(1, num_classes + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def ellipses(boxes: np.ndarray) -> list[dict]:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2 + 0.5
    polygons = boxes[:, None, :2] + corners * boxes[:, None, 2:]
    runs = mask_util.frPyObjects(polygons.reshape(len(boxes), -1).tolist(), HEIGHT, WIDTH)
    return [{**run, "counts": run["counts"].decode()} for run in runs]


def prepare(truth: dict, task: str, lvis_style: bool, fast: bool):
    """A function of detections that evaluates them and returns precision; reads the truth."""
    if fast:
        ours = COCO(truth)

        def evaluate(detections):
            evaluation = COCOeval_faster(
                ours, ours.loadRes(detections), task, lvis_style=lvis_style
            )
            evaluation.params.maxDets = [300] if lvis_style else [1, 10, 100]
            evaluation.run()
            return evaluation.eval["precision"]

    elif lvis_style:
        import lvis

        np.float = float  # lvis 0.5.3 is older than NumPy 1.24
        logging.disable(logging.WARNING)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(truth, file)
            file.flush()
            theirs = lvis.LVIS(file.name)

        def evaluate(detections):
            evaluation = lvis.LVISEval(theirs, lvis.LVISResults(theirs, detections), task)
            evaluation.run()
            return evaluation.eval["precision"][..., None]

    else:
        from pycocotools.coco import COCO as Official
        from pycocotools.cocoeval import COCOeval

        theirs = Official()
        theirs.dataset = truth
        theirs.createIndex()

        def evaluate(detections):
            evaluation = COCOeval(theirs, theirs.loadRes(detections), task)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            return evaluation.eval["precision"]

    return evaluate


def main(what: str, num_images: int) -> None:
    lvis_style, task = what == "lvis", "segm" if what == "segm" else "bbox"
    truth, detections = made_up(num_images, 1203 if lvis_style else 80, masks=task == "segm")
    if task == "segm":
        for detection in detections:
            del detection["bbox"]
    precision, seconds = {}, {}
    for fast in (False, True):
        with contextlib.redirect_stdout(io.StringIO()):
            evaluate = prepare(copy.deepcopy(truth), task, lvis_style, fast)
            given = copy.deepcopy(detections)
            cpu, wall = time.process_time(), time.perf_counter()
            precision[fast] = evaluate(given)
            seconds[fast] = time.process_time() - cpu, time.perf_counter() - wall
    apart = np.abs(precision[True] - precision[False]).max()
    for fast, name in (
        (False, "lvis" if lvis_style else "pycocotools"),
        (True, "faster-coco-eval"),
    ):
        print(f"{name}: {seconds[fast][0]:.1f} s CPU, {seconds[fast][1]:.1f} s wall")
    print(f"ratio {seconds[False][0] / seconds[True][0]:.1f}, precisions at most {apart:.1e} apart")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
