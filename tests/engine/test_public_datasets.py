"""LVIS and Cityscapes, in miniature: registered, trained on, evaluated by their own measures."""

import itertools
import sys
from collections import Counter
from importlib import import_module

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from PIL import Image
from torch import nn

from bucketed_ranking.data.catalog import register
from bucketed_ranking.engine import run_folder, runs, setup
from bucketed_ranking.engine.cityscapes import class_curve
from bucketed_ranking.engine.data_loader import build_train_loader
from bucketed_ranking.engine.evaluation import evaluate_model
from bucketed_ranking.engine.report import report_training
from bucketed_ranking.errors import BucketRankError
from tests.public_datasets import (
    COMMON,
    HEIGHT,
    RARE,
    UNCOMMON,
    WIDTH,
    registered_under,
    write_cityscapes,
    write_lvis,
)
from tests.small_detectors import NARROW

LVIS = ("lvis_v1_train", "lvis_v1_val")
CITYSCAPES = ("cityscapes_fine_instance_seg_train", "cityscapes_fine_instance_seg_val")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    for split in ("train", "val"):
        write_lvis(folder, split)
        write_cityscapes(folder, split)
    with pytest.MonkeyPatch.context() as patch, registered_under(folder):
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        yield folder


def config(names: tuple[str, str], *options: str, detector: str = "mask_rcnn_tiny"):
    cfg = setup.load_config(detector, loss="brs", options=[*NARROW, *options], device="cpu")
    setup.configure_datasets(cfg, *names)
    cfg.SEED = 3
    return cfg


def test_lvis_has_all_its_classes_whatever_a_file_holds(root):
    info = register("lvis_v1_train")
    assert (info.num_classes, info.num_images, info.num_annotations) == (1203, 6, 10)
    assert info.class_names[COMMON - 1] == MetadataCatalog.get("lvis_v1_train").thing_classes[2]
    assert info.has_masks
    assert info.evaluator == "lvis"


def test_cityscapes_counts_the_objects_of_its_eight_classes(root):
    info = register("cityscapes_fine_instance_seg_train")
    assert info.class_names[:3] == ["person", "rider", "car"]
    assert (info.num_classes, info.num_images, info.num_annotations) == (8, 4, 12)
    assert info.has_masks
    crowds = [
        (annotation["category_id"], annotation["iscrowd"])
        for record in DatasetCatalog.get("cityscapes_fine_instance_seg_train")
        for annotation in record["annotations"]
    ]
    assert Counter(crowds) == {(2, False): 4, (0, False): 4, (0, True): 4}


@pytest.mark.parametrize("names", [LVIS, CITYSCAPES], ids=["lvis", "cityscapes"])
def test_training_ends_with_the_data_sets_own_measure(root, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / "run")]
    options += ["TEST.DETECTIONS_PER_IMAGE", "5"]
    results = runs.train(config(names, *options))
    assert 0 <= results["segm"]["AP"] <= 100
    assert ("bbox" in results) == ("APr" in results["segm"]) == (names is LVIS)
    record = run_folder.read_json(tmp_path / "run" / run_folder.RECORD)
    num_classes = 1203 if names is LVIS else 8
    assert len(record["category_ids"]) == len(record["class_names"]) == num_classes
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing else is written"
    page = report_training(tmp_path / "run").read_text()
    assert "mask AP50" in page
    assert ("Confusion matrix" in page) == ("The worst pictures" in page) == (names is LVIS)


class Oracle(nn.Module):
    """Finds every object with its exact mask, and at a higher score what is wrong.

    Args:
        wrong: by image id, a class index of which the whole image is said to be an object.
    """

    def __init__(self, dataset: str, silent: bool = False, wrong: dict | None = None):
        super().__init__()
        self.records = {record["image_id"]: record for record in DatasetCatalog.get(dataset)}
        self.silent, self.wrong = silent, wrong or {}

    def forward(self, batch):
        return [{"instances": self._find(inputs["image_id"])} for inputs in batch]

    def _find(self, image_id) -> Instances:
        found = [] if self.silent else list(self._truth(self.records[image_id]))
        if image_id in self.wrong:
            found.insert(0, (self.wrong[image_id], torch.ones(HEIGHT, WIDTH)))
        masks = torch.zeros(len(found), HEIGHT, WIDTH, dtype=torch.bool)
        for row, (_, mask) in enumerate(found):
            masks[row] = mask
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_masks = masks
        instances.pred_boxes = Boxes(BitMasks(masks).get_bounding_boxes().tensor)
        instances.pred_classes = torch.tensor([index for index, _ in found], dtype=torch.long)
        instances.scores = torch.linspace(0.9, 0.8, len(found))
        return instances

    def _truth(self, record):
        for annotation in record["annotations"]:
            if not annotation.get("iscrowd"):
                polygons = PolygonMasks([annotation["segmentation"]])
                mask = BitMasks.from_polygon_masks(polygons, HEIGHT, WIDTH).tensor[0]
                yield annotation["category_id"], mask


class CityscapesOracle(Oracle):
    def _truth(self, record):
        truth = record["file_name"].replace("leftImg8bit", "gtFine")
        ids = np.array(Image.open(truth.replace("_gtFine.png", "_gtFine_instanceIds.png")))
        for number in np.unique(ids[ids >= 1000]):
            index = {24: 0, 26: 2}[int(number) // 1000]
            yield index, torch.from_numpy(ids == number)


def test_perfect_detections_score_100_on_lvis(root, tmp_path):
    cfg = config(LVIS)
    matched = []
    how = {"on_matched": matched.append}
    results = evaluate_model(cfg, Oracle("lvis_v1_val"), "lvis_v1_val", tmp_path, **how)
    assert len(matched[0].right) > 0
    assert matched[0].right.all()
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100, abs=0.1)
        assert np.isnan(results[task]["APl"]), "there is no large object"
        assert results[task]["score_threshold"] == pytest.approx(0.8)
        names = MetadataCatalog.get("lvis_v1_val").thing_classes
        per_class = {name: ap for name, ap in results[task]["per_class"].items() if ap == ap}
        assert per_class == pytest.approx(
            {names[number - 1]: 100 for number in (COMMON, UNCOMMON, RARE)}, abs=0.1
        )
    assert (tmp_path / "lvis_instances_results.json").is_file()


@pytest.mark.parametrize(("image", "lowers"), [(1, True), (2, True), (3, False)])
def test_lvis_counts_false_positives_only_where_a_class_was_looked_for(
    root, tmp_path, image, lowers
):
    """In image 1 there is one, in image 2 there is none, of image 3 nothing is known."""
    oracle = Oracle("lvis_v1_val", wrong={image: RARE - 1})
    results = evaluate_model(config(LVIS), oracle, "lvis_v1_val", tmp_path)["segm"]
    assert (results["AP"] < 99) == lowers
    names = MetadataCatalog.get("lvis_v1_val").thing_classes
    assert (results["per_class"][names[RARE - 1]] < 99) == lowers
    assert results["per_class"][names[COMMON - 1]] == pytest.approx(100, abs=0.1)


def test_perfect_masks_score_100_on_cityscapes_and_none_0(root, tmp_path):
    name, cfg = CITYSCAPES[1], config(CITYSCAPES)
    results = evaluate_model(cfg, CityscapesOracle(name), name, tmp_path)
    assert set(results) == {"segm"}
    assert results["segm"]["AP"] == results["segm"]["AP50"] == pytest.approx(100)
    per_class = results["segm"]["per_class"]
    assert set(per_class) == set(MetadataCatalog.get(name).thing_classes)
    assert {name for name, ap in per_class.items() if ap == 100} == {"person", "car"}
    assert results["segm"]["score_threshold"] == pytest.approx(0.8)
    none = evaluate_model(cfg, CityscapesOracle(name, silent=True), name, tmp_path)
    assert none["segm"]["AP"] == 0


class ShakyOracle(CityscapesOracle):
    """Finds objects up to three times, some moved off the object, at scores of one decimal."""

    def __init__(self, dataset: str, seed: int):
        super().__init__(dataset)
        self.rng = np.random.default_rng(seed)

    def _find(self, image_id) -> Instances:
        found = super()._find(image_id)
        found = found[torch.from_numpy(np.arange(len(found)).repeat(self.rng.integers(0, 4)))]
        for mask in found.pred_masks:
            mask.copy_(mask.roll(tuple(self.rng.integers(-9, 10, 2)), (0, 1)))
        found.scores = torch.from_numpy(self.rng.random(len(found)).round(1)).float()
        return found


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_of_a_cityscapes_class_has_the_area_that_cityscapes_measures(
    root, tmp_path, monkeypatch, seed
):
    script = import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    kept = []

    def evaluate_and_keep(matches, arguments, evaluate=script.evaluateMatches):
        kept.append((matches.values(), arguments.instLabels, evaluate(matches, arguments)))
        return kept[-1][-1]

    monkeypatch.setattr(script, "evaluateMatches", evaluate_and_keep)
    name = CITYSCAPES[1]
    results = evaluate_model(config(CITYSCAPES), ShakyOracle(name, seed), name, tmp_path)
    assert 0 < results["segm"]["AP50"] < 100
    ((images, labels, aps),) = kept
    for label, ap in zip(labels, aps[0, :, 0], strict=True):
        scores, precision, recall = class_curve(images, label)
        if len(scores) and not np.isnan(ap):
            of_score = np.append(np.diff(scores) != 0, True)
            precision, recall = precision[of_score][::-1], recall[of_score][::-1]
            recall = np.array([recall[0], *recall, 0, 0])
            assert ap == pytest.approx(np.append(precision, 1) @ (recall[:-2] - recall[2:]) / 2)


def test_no_detection_at_all_is_ap_0_on_lvis(root, tmp_path):
    cfg = config(LVIS)
    results = evaluate_model(cfg, Oracle("lvis_v1_val", silent=True), "lvis_v1_val", tmp_path)
    assert results["bbox"]["AP"] == results["segm"]["APf"] == 0


def test_repeat_factors_repeat_rare_images_in_an_order_of_seed_and_iteration_alone(root):
    options = ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler",
               "DATALOADER.REPEAT_THRESHOLD", "1.0"]  # fmt: skip
    cfg = config(LVIS, *options)

    def batches(start: int, count: int):
        loader = build_train_loader(cfg, start)
        return [[i["image_id"] for i in batch] for batch in itertools.islice(loader, count)]

    whole = batches(0, 60)
    assert batches(23, 37) == whole[23:]
    seen = Counter(itertools.chain(*whole))
    # Frequencies 1/6, 1/2, 1 and threshold 1: repeated sqrt(6), sqrt(2), 1 times.
    assert seen[1] / seen[2] == pytest.approx(6**0.5, rel=0.3)
    assert seen[3] / seen[2] == pytest.approx(2**0.5, rel=0.3)


@pytest.mark.parametrize(
    ("name", "address"), [("lvis", "lvisdataset"), ("cityscapes", "cityscapes-dataset")]
)
def test_absent_files_are_told_with_where_they_belong(name, address, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = setup.load_config("mask_rcnn_tiny", device="cpu")
    with pytest.raises(BucketRankError, match=rf"absent.*{tmp_path}.*DETECTRON2_DATA.*{address}"):
        setup.configure_datasets(cfg, *setup.choose_datasets(cfg, name, None, None))


def test_a_missing_package_is_named(root, monkeypatch):
    monkeypatch.setattr(
        "bucketed_ranking.data.catalog.find_spec", lambda n: None if n == "shapely" else object()
    )
    with pytest.raises(BucketRankError, match=r"not installed: shapely; .*--no-deps shapely"):
        register(CITYSCAPES[0])


def test_lvis_is_read_without_its_package(root, monkeypatch):
    pytest.importorskip("lvis")
    register(LVIS[1])
    expected = DatasetCatalog.get(LVIS[1])
    monkeypatch.setitem(sys.modules, "lvis", None)  # its own is back after the test
    del sys.modules["lvis"]
    monkeypatch.setattr("bucketed_ranking.data.catalog.find_spec", lambda name: None)
    register(LVIS[1])
    assert DatasetCatalog.get(LVIS[1]) == expected


def test_cityscapes_needs_a_detector_with_masks(root):
    with pytest.raises(BucketRankError, match="evaluated by masks"):
        config(CITYSCAPES, detector="faster_rcnn_tiny")


def test_a_folder_without_annotations_is_told(root, tmp_path, monkeypatch):
    for folder in ("leftImg8bit", "gtFine"):
        (tmp_path / "cityscapes" / folder / "train").mkdir(parents=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(BucketRankError, match="no annotations of 'cityscapes_fine"):
        register(CITYSCAPES[0])
