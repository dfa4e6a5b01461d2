"""Evaluation: known detections give known AP; the drawn threshold is the best one."""

import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from torch import nn

from bucketed_ranking.data import shapes
from bucketed_ranking.data.catalog import register
from bucketed_ranking.data.registry import add_dataset, find_dataset
from bucketed_ranking.data.shapes.sampling import UniformSampler
from bucketed_ranking.data.shapes.scene import draw_scene
from bucketed_ranking.engine.evaluation import evaluate_model, write_results
from tests.coco_blobs import write_blobs
from tests.small_detectors import narrow_config


class Oracle(nn.Module):
    """Finds every object; where `also_wrong`, one box a picture more, at a lower score."""

    def __init__(self, dataset: str, also_wrong: bool = False, silent: bool = False):
        super().__init__()
        self.also_wrong, self.silent = also_wrong, silent
        self.truth = {d["image_id"]: d["annotations"] for d in DatasetCatalog.get(dataset)}

    def forward(self, batch):
        outputs = []
        for inputs in batch:
            annotations = [] if self.silent else self.truth[inputs["image_id"]]
            boxes = torch.tensor([a["bbox"] for a in annotations]).reshape(-1, 4).float()
            boxes[:, 2:] += boxes[:, :2]
            classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.long)
            scores = torch.full((len(annotations),), 0.8)
            if self.also_wrong:
                boxes = torch.cat([boxes, torch.tensor([[0.0, 0.0, 3.0, 3.0]])])
                classes, scores = (
                    torch.cat([classes, classes[:1]]),
                    torch.cat([scores, scores[:1] / 2]),
                )
            found = Instances((inputs["height"], inputs["width"]))
            found.pred_boxes, found.pred_classes, found.scores = Boxes(boxes), classes, scores
            outputs.append({"instances": found})
        return outputs


@pytest.fixture
def val(blobs):
    return register(f"{blobs}_val").name


def test_perfect_detections_score_100(val, tmp_path):
    cfg = narrow_config("retinanet_tiny", "brs")
    results = evaluate_model(cfg, Oracle(val), val, tmp_path)["bbox"]
    assert results["AP"] == pytest.approx(100)
    assert set(results["per_class"]) == set(MetadataCatalog.get(val).thing_classes)
    assert all(ap == pytest.approx(100) for ap in results["per_class"].values())
    assert math.isnan(results["APl"]), "there is no large object"
    assert (tmp_path / "coco_instances_results.json").is_file()


def test_one_class_has_its_ap_too(val, tmp_path):
    entry = find_dataset(val)
    content = json.loads(entry.json.read_text())
    content["categories"] = content["categories"][:1]
    for annotation in content["annotations"]:
        annotation["category_id"] = content["categories"][0]["id"]
    (tmp_path / "one.json").write_text(json.dumps(content))
    add_dataset("one_class", tmp_path / "one.json", entry.images)
    name = register("one_class").name
    results = evaluate_model(narrow_config("retinanet_tiny", "brs"), Oracle(name), name, tmp_path)
    assert results["bbox"]["per_class"] == {content["categories"][0]["name"]: pytest.approx(100)}


def test_the_threshold_leaves_out_the_wrong_boxes(val, tmp_path):
    cfg = narrow_config("retinanet_tiny", "brs")
    results = evaluate_model(cfg, Oracle(val, also_wrong=True), val, tmp_path)["bbox"]
    assert results["score_threshold"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("config", "tasks"), [("retinanet_tiny", {"bbox"}), ("mask_rcnn_tiny", {"bbox", "segm"})]
)
def test_no_detection_at_all_is_ap_0(val, tmp_path, config, tasks):
    results = evaluate_model(narrow_config(config, "brs"), Oracle(val, silent=True), val, tmp_path)
    assert set(results) == tasks
    assert all(metrics["AP"] == metrics["AP50"] == 0 for metrics in results.values())


class ProposalOracle(Oracle):
    """Proposes every object."""

    def forward(self, batch):
        outputs = []
        for output in super().forward(batch):
            found = output["instances"]
            proposals = Instances(found.image_size)
            proposals.proposal_boxes, proposals.objectness_logits = found.pred_boxes, found.scores
            outputs.append({"proposals": proposals})
        return outputs


@pytest.mark.parametrize("index", [0, -1])
def test_proposals_of_a_picture_that_cannot_be_read_are_left_out(
    bucketrank_home, tmp_path, caplog, index
):
    path = write_blobs(tmp_path / "few", 3, seed=1)
    add_dataset(f"proposed_{index}", path, path.parent / "images")
    name = register(f"proposed_{index}").name
    model = ProposalOracle(name)
    sorted((path.parent / "images").iterdir())[index].unlink()
    with caplog.at_level("WARNING"):
        found = evaluate_model(narrow_config("faster_rcnn_tiny", "brs"), model, name, tmp_path)
    assert set(found) == {"box_proposals"}
    assert found["box_proposals"]["AR@100"] == pytest.approx(100)
    assert "1 of the 3 pictures to evaluate on cannot be read" in caplog.text


@pytest.fixture(scope="module")
def embedded(bucketrank_home, tmp_path_factory):
    """A few pictures of the embedded data set, under a name of their own."""
    home = tmp_path_factory.mktemp("home")
    folder = shapes.ensure_shapes(home / "shapes", {"train": 1, "val": 12})
    add_dataset("few_shapes", shapes.annotations_file(folder, "val"), folder / "val")
    return register("few_shapes").name


class MaskOracle(Oracle):
    """Finds every object with the mask that `mask_of(annotation, inputs, index)` gives."""

    def __init__(self, dataset: str, mask_of):
        super().__init__(dataset)
        self.mask_of = mask_of

    def forward(self, batch):
        outputs = super().forward(batch)
        for inputs, output in zip(batch, outputs, strict=True):
            annotations = self.truth[inputs["image_id"]]
            masks = [self.mask_of(a, inputs, index) for index, a in enumerate(annotations)]
            output["instances"].pred_masks = torch.from_numpy(np.stack(masks)).bool()
        return outputs


def annotated_mask(annotation, inputs, index):
    polygons = annotation["segmentation"]
    runs = mask_util.frPyObjects(polygons, inputs["height"], inputs["width"])
    return mask_util.decode(mask_util.merge(runs))


def painted_mask(annotation, inputs, index):
    """The object's visible pixels as they were painted, before polygons were drawn around."""
    _, objects = draw_scene(
        UniformSampler(shapes.SEED, shapes.VERSION, True, inputs["image_id"] - 1)
    )
    return objects[index].mask


@pytest.mark.parametrize("mask_of", [annotated_mask, painted_mask])
def test_perfect_masks_score_100_on_the_embedded_data(embedded, tmp_path, mask_of):
    cfg = narrow_config("mask_rcnn_tiny", "brs")
    results = evaluate_model(cfg, MaskOracle(embedded, mask_of), embedded, tmp_path)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP"] == pytest.approx(100)
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert all({"bbox", "segmentation"} <= set(result) for result in written)


def test_boxes_for_masks_score_100_as_boxes_alone(embedded, tmp_path):
    def whole_box(annotation, inputs, index):
        x, y, width, height = annotation["bbox"]
        mask = np.zeros((inputs["height"], inputs["width"]), bool)
        mask[y : y + height, x : x + width] = True
        return mask

    cfg = narrow_config("mask_rcnn_tiny", "brs")
    results = evaluate_model(cfg, MaskOracle(embedded, whole_box), embedded, tmp_path)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] < 80


def test_objects_without_a_mask_are_neither_missed_nor_wrong(embedded, tmp_path):
    entry = find_dataset(embedded)
    content = json.loads(entry.json.read_text())
    del content["annotations"][3]["segmentation"]
    (tmp_path / "some.json").write_text(json.dumps(content))
    add_dataset("some_masks", tmp_path / "some.json", entry.images, force=True)
    name = register("some_masks").name

    cfg = narrow_config("mask_rcnn_tiny", "brs")
    results = evaluate_model(cfg, MaskOracle(name, painted_mask), name, tmp_path)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_results_are_json_with_null_for_nan(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_results(path, {"AP": float("nan"), "list": [1.0, float("nan")]})
    assert path.read_text() == '{\n  "AP": null,\n  "list": [\n    1.0,\n    null\n  ]\n}\n'
    assert list(path.parent.iterdir()) == [path]
