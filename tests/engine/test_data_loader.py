"""Training batches: their order depends on seed and iteration alone, and bad images are skipped."""

import itertools
import json
import shutil

import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.utils import comm

from bucketed_ranking.data.catalog import register
from bucketed_ranking.data.registry import add_dataset, find_dataset
from bucketed_ranking.engine.data_loader import TrainingBatches, TrainingImages, build_train_loader
from bucketed_ranking.errors import BucketRankError
from tests.coco_blobs import write_blobs
from tests.small_detectors import narrow_config


def test_batches_hold_one_group_and_lose_no_index():
    groups = [0, 1, 0, 1, 0, 0]
    stream = [0, 1, 2, 3, 4, 5]
    batches = list(TrainingBatches(stream, groups, batch_size=2))
    assert batches == [[(0, 0), (2, 2)], [(1, 1), (3, 3)], [(4, 4), (5, 5)]]


def test_starting_later_gives_the_rest_of_the_same_batches():
    groups = [0, 1, 0, 1, 1]
    stream = list(itertools.chain.from_iterable([[0, 1, 2, 3, 4]] * 4))
    whole = list(TrainingBatches(stream, groups, batch_size=2))
    assert list(TrainingBatches(stream, groups, batch_size=2, start=3)) == whole[3:]


def test_two_processes_augment_as_one_does_with_the_batches_of_both(blobs, monkeypatch):
    cfg = loader_config(blobs)
    alone = {(p, i) for batch in itertools.islice(stream_of(cfg), 6) for p, i in batch}
    together = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        together += [pair for batch in itertools.islice(stream_of(cfg), 6) for pair in batch]
    assert len(set(together)) == len(together)
    assert set(together) == alone


def stream_of(cfg):
    """Positions and indices of the images of this process, batch by batch."""
    return build_train_loader(cfg).loader.batch_sampler


def loader_config(blobs: str, *options: str):
    register(f"{blobs}_train")
    cfg = narrow_config("retinanet_tiny", "brs", "INPUT.MIN_SIZE_TRAIN", "(56, 64, 72)", *options)
    cfg.DATASETS.TRAIN = (f"{blobs}_train",)
    cfg.SEED = 5
    return cfg


def first(loader, count: int) -> list[list[dict]]:
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_resumed_loader_yields_the_same_augmented_images(blobs, workers):
    cfg = loader_config(blobs, "DATALOADER.NUM_WORKERS", workers)
    whole = first(build_train_loader(cfg), 7)
    resumed = first(build_train_loader(cfg, start=4), 3)
    for expected, found in zip(itertools.chain(*whole[4:]), itertools.chain(*resumed), strict=True):
        assert found["file_name"] == expected["file_name"]
        assert torch.equal(found["image"], expected["image"])
        assert torch.equal(
            found["instances"].gt_boxes.tensor, expected["instances"].gt_boxes.tensor
        )


def test_epochs_are_augmented_anew(blobs):
    cfg = loader_config(blobs)
    seen: dict[str, list[torch.Tensor]] = {}
    for image in itertools.chain(*first(build_train_loader(cfg), 24)):
        seen.setdefault(image["file_name"], []).append(image["image"])
    repeated = [images for images in seen.values() if len(images) > 2]
    assert repeated
    assert any(not torch.equal(images[0], other) for images in repeated for other in images[1:]
               if images[0].shape == other.shape) or any(
        len({tuple(i.shape) for i in images}) > 1 for images in repeated
    )  # fmt: skip


def test_loading_does_not_move_the_random_numbers_of_the_training_process(blobs):
    cfg = loader_config(blobs)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first(build_train_loader(cfg), 2)
    assert torch.equal(torch.rand(4), expected)


def test_an_unreadable_image_is_replaced_by_the_next_and_named():
    def mapper(dataset_dict):
        if dataset_dict["file_name"] in ("b.jpg", "c.jpg"):
            raise OSError("truncated")
        return {"file_name": dataset_dict["file_name"]}

    images = TrainingImages([{"file_name": f"{name}.jpg"} for name in "abcd"], mapper, seed=0)
    assert images[(0, 0)] == {"file_name": "a.jpg", "unreadable": []}
    assert images[(1, 1)] == {"file_name": "d.jpg", "unreadable": ["b.jpg", "c.jpg"]}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_only_unreadable_images_is_one_sentence(tmp_path, workers):
    path = write_blobs(tmp_path / "gone", 3, seed=1)
    add_dataset("gone_train", path, path.parent / "images", force=True)
    loader = build_train_loader(loader_config("gone", "DATALOADER.NUM_WORKERS", workers))
    shutil.rmtree(path.parent / "images")
    with pytest.raises(BucketRankError, match="None of the 3 training images can be read") as told:
        first(loader, 1)
    assert "Traceback" not in str(told.value)


def test_an_image_that_breaks_after_registration_is_skipped_and_counted(blobs, tmp_path):
    cfg = loader_config(blobs)
    folder = find_dataset("blobs_train").images
    victim = folder / "005.jpg"
    original = victim.read_bytes()
    try:
        victim.write_bytes(original[:300])
        loader = build_train_loader(cfg)
        names = {image["file_name"] for image in itertools.chain(*first(loader, 24))}
    finally:
        victim.write_bytes(original)
    assert loader.unreadable == {str(victim)}
    assert str(victim) not in names
    assert len(names) == 11


def test_boxes_of_whole_numbers_keep_the_fraction_that_resizing_gives_them(blobs):
    cfg = loader_config(
        blobs, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.RANDOM_FLIP", "none", "MODEL.MASK_ON", "True"
    )
    content = json.loads(find_dataset(f"{blobs}_train").json.read_text())
    assert isinstance(content["annotations"][0]["bbox"][0], int)
    for image in first(build_train_loader(cfg), 1)[0]:
        height, width = image["image"].shape[1:]
        scale = torch.tensor([width / image["width"], height / image["height"]]).repeat(2)
        expected = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["image_id"]]
        expected = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in expected]) * scale
        instances = image["instances"]
        torch.testing.assert_close(instances.gt_boxes.tensor, expected)
        torch.testing.assert_close(instances.gt_masks.get_bounding_boxes().tensor, expected)


def test_an_unknown_sampler_is_told(blobs):
    cfg = loader_config(blobs, "DATALOADER.SAMPLER_TRAIN", "NoSampler")
    with pytest.raises(BucketRankError, match="use TrainingSampler or RepeatFactorTrainingSampler"):
        build_train_loader(cfg)


def test_repeat_factor_sampling_repeats_rare_classes(blobs):
    cfg = loader_config(blobs, "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
    assert len(first(build_train_loader(cfg), 3)) == 3


def test_crowds_are_no_ground_truth(blobs, tmp_path):
    entry = find_dataset(f"{blobs}_train")
    content = json.loads(entry.json.read_text())
    for annotation in content["annotations"][::3]:
        annotation["iscrowd"] = 1
    (tmp_path / "crowds.json").write_text(json.dumps(content))
    add_dataset("crowds_train", tmp_path / "crowds.json", entry.images, force=True)
    images = list(itertools.chain(*first(build_train_loader(loader_config("crowds")), 4)))
    assert [len(image["instances"]) for image in images] == [2] * len(images)


def masks_of(blobs, tmp_path, edit):
    """Boxes and masks of the first training images, after a change to the annotations."""
    entry = find_dataset(f"{blobs}_train")
    content = json.loads(entry.json.read_text())
    edit(content["annotations"])
    (tmp_path / "masks.json").write_text(json.dumps(content))
    add_dataset("masks", tmp_path / "masks.json", entry.images, force=True)
    register("masks")
    cfg = narrow_config("mask_rcnn_tiny", "brs", "DATALOADER.ASPECT_RATIO_GROUPING", "False")
    cfg.DATASETS.TRAIN, cfg.SEED = ("masks",), 5
    images = itertools.chain(*first(build_train_loader(cfg), 6))
    return {image["image_id"]: image["instances"] for image in images}


def test_masks_are_augmented_with_their_boxes(blobs, tmp_path):
    for instances in masks_of(blobs, tmp_path, lambda annotations: None).values():
        assert isinstance(instances.gt_masks, PolygonMasks)
        # The blobs are rectangles: their masks fill their boxes.
        torch.testing.assert_close(
            instances.gt_masks.get_bounding_boxes().tensor, instances.gt_boxes.tensor
        )


def test_crowds_and_objects_without_a_mask_are_left_out(blobs, tmp_path):
    def edit(annotations):
        annotations[0]["iscrowd"] = 1
        del annotations[4]["segmentation"]

    images = masks_of(blobs, tmp_path, edit)
    assert [len(images[index]) for index in (1, 2, 3)] == [2, 2, 3]
    assert all(len(each.gt_masks) == len(each) for each in images.values())


def test_run_lengths_become_bitmaps(blobs, tmp_path):
    def edit(annotations):
        x, y, w, h = annotations[0]["bbox"]
        before, column = 80 * x + y, [h, 80 - h] * (w - 1) + [h]
        counts = [before, *column, 80 * 96 - before - sum(column)]
        annotations[0]["segmentation"] = {"counts": counts, "size": [80, 96]}

    images = masks_of(blobs, tmp_path, edit)
    assert all(isinstance(each.gt_masks, BitMasks) for each in images.values())
    boxes, masks = images[1].gt_boxes.tensor, images[1].gt_masks.get_bounding_boxes().tensor
    assert (boxes - masks).abs().max() <= 1.5
