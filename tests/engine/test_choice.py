"""A config is chosen by objects, pictures and device."""

import json

import numpy as np
import pytest
from PIL import Image

from bucketed_ranking.data.registry import add_dataset
from bucketed_ranking.engine import choice
from bucketed_ranking.zoo import find_config


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Registers a data set of four pictures of 800 x `height`, each with a box of `length`."""
    monkeypatch.setenv("BUCKETRANK_HOME", str(tmp_path))

    def add(name, height, length, masks=False):
        (tmp_path / name).mkdir()
        square = [10, 10, 10 + length, 10, 10 + length, 10 + length, 10, 10 + length]
        segmentation = {"segmentation": [square]} if masks else {}
        content = {"categories": [{"id": 1, "name": "thing"}], "images": [], "annotations": []}
        for index in range(1, 5):
            Image.fromarray(np.zeros((height, 800, 3), np.uint8)).save(
                tmp_path / name / f"{index}.png"
            )
            content["images"].append(
                {"id": index, "file_name": f"{index}.png", "width": 800, "height": height}
            )
            content["annotations"].append(
                {"id": index, "image_id": index, "category_id": 1, **segmentation,
                 "bbox": [10, 10, length, length]}
            )  # fmt: skip
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        add_dataset(name, path, tmp_path / name)
        return name

    return add


def test_boxes_and_masks_have_their_detector(dataset):
    boxes = choice.choose_config(dataset("boxes", 400, 40), "cpu")
    masks = choice.choose_config(dataset("masks", 400, 40, masks=True), "cpu")
    assert (boxes.config, masks.config) == ("retinanet_lite0_FPN", "mask_rcnn_lite0_FPN")
    for each in (boxes, masks):
        assert find_config(each.config).is_file()
        assert each.epochs == 1200  # 4800 pictures


@pytest.mark.parametrize(
    ("height", "length", "size"),
    [
        (800, 80, 320),  # large objects: the least
        (800, 28, 480),  # 16 x 800 / 28 = 457, and up to a multiple of 32
        (800, 9, 640),  # small ones: the most
        (500, 9, 512),  # no larger than the pictures
        (200, 40, 224),
    ],
)
def test_pictures_are_large_enough_for_small_objects(dataset, height, length, size):
    assert choice.choose_config(dataset("some", height, length), "cpu").image_size == size


def test_many_pictures_on_a_large_gpu_get_the_full_detector(dataset, monkeypatch):
    name = dataset("many", 400, 40)
    monkeypatch.setattr(choice, "_MANY_PICTURES", 4)
    for gib, config in ((8, "retinanet_lite0_FPN"), (24, "retinanet_R_50_FPN_1x")):
        monkeypatch.setattr(choice, "_gpu_memory", lambda gib=gib: gib * 2**30)
        assert choice.choose_config(name, "cuda").config == config
    assert choice.choose_config(name, "cpu").config == "retinanet_lite0_FPN"
    assert find_config("retinanet_R_50_FPN_1x").is_file()
    assert find_config("mask_rcnn_R_50_FPN_1x").is_file()
