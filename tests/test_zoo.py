"""Shipped configs by name, and what they hold."""

from pathlib import Path

import pytest

from bucketed_ranking import zoo
from bucketed_ranking.environment import configs_root
from bucketed_ranking.errors import BucketRankError
from bucketed_ranking.published import PUBLISHED

LVIS = "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"


def test_every_shipped_config_has_a_name_of_its_own():
    shipped = [p for p in configs_root().rglob("*.yaml") if not p.stem.startswith("Base-")]
    assert sorted(zoo.available_configs().values()) == sorted(shipped)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mask_rcnn_R_50_FPN_1x", "COCO-InstanceSegmentation"),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "COCO-InstanceSegmentation"),
        (LVIS, "LVISv1-InstanceSegmentation"),
        (f"{LVIS}.yaml", "LVISv1-InstanceSegmentation"),
        ("Cityscapes/mask_rcnn_R_50_FPN", "Cityscapes"),
        ("retinanet_tiny.yaml", "Tiny"),
    ],
)
def test_names_of_the_model_zoo_find_their_own_config(name, folder):
    found = zoo.find_config(name)
    assert found.is_file()
    assert (found.parent.name, found.stem) == (folder, Path(name).name.removesuffix(".yaml"))


def test_a_config_of_another_folder_is_not_taken_for_it():
    with pytest.raises(BucketRankError, match=f"did you mean .*{LVIS}"):
        zoo.find_config("LVISv2-InstanceSegmentation/mask_rcnn_R_50_FPN_1x")


def test_each_published_row_has_its_config():
    assert {row.config for row in PUBLISHED} <= zoo.available_configs().keys()


def test_published_rows_describe_the_configs_that_they_name():
    datasets = {
        "coco_2017": "COCO",
        "cityscapes_fine_instance_seg": "Cityscapes",
        "lvis_v1": "LVIS v1",
    }
    for summary in zoo.list_configs():
        for row in summary.published:
            assert (row.detector, row.backbone) == (summary.detector, summary.backbone)
            assert row.dataset == datasets[summary.dataset]
            assert row.metric == {"boxes": "bbox", "masks": "segm"}[summary.task]
            if row.dataset == "COCO":
                assert row.epochs == round(summary.iterations / 7500), summary.name


def test_summaries_agree_with_what_detectron2_reads():
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from bucketed_ranking.engine.setup import load_config

    for summary in zoo.list_configs():
        cfg = load_config(summary.name, loss="score", device="cpu")
        assert summary.iterations == cfg.SOLVER.MAX_ITER
        assert summary.batch_size == cfg.SOLVER.IMS_PER_BATCH
        assert (f"{summary.dataset}_train",) == cfg.DATASETS.TRAIN
        assert (summary.task == "masks") == cfg.MODEL.MASK_ON
        if summary.backbone.startswith("R-"):
            assert int(summary.backbone.split("-")[1]) == cfg.MODEL.RESNETS.DEPTH
