"""Random changes of training pictures: what they are, and that boxes and masks follow."""

import numpy as np
import pytest
from detectron2.data import DatasetMapper
from detectron2.data.transforms import AugInput

from bucketed_ranking.engine.augmentation import training_augmentations
from bucketed_ranking.engine.data_loader import build_train_loader
from bucketed_ranking.engine.setup import configure_datasets, load_config

OPTIONS = ["DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "4", "MODEL.WEIGHTS", ""]


def config(blobs, name, *options):
    cfg = load_config(name, options=[*OPTIONS, *options], device="cpu")
    configure_datasets(cfg, f"{blobs}_train", f"{blobs}_val")
    cfg.SEED = 1
    return cfg


def test_it_is_on_in_light_and_off_by_one_key(blobs):
    pytest.importorskip("timm")
    strong = config(blobs, "retinanet_lite0_FPN")
    off = config(blobs, "retinanet_lite0_FPN", "INPUT.STRONG_AUGMENTATION", "False")
    assert len(training_augmentations(strong)) == len(training_augmentations(off)) + 4
    ours = [repr(augmentation) for augmentation in training_augmentations(off)]
    theirs = [repr(a) for a in DatasetMapper(off, is_train=True).augmentations.augs]
    assert ours == theirs


def test_detectron2s_own_crop_stays(blobs):
    cfg = config(blobs, "retinanet_tiny", "INPUT.CROP.ENABLED", "True")
    ours = [repr(augmentation) for augmentation in training_augmentations(cfg)]
    assert ours == [repr(a) for a in DatasetMapper(cfg, is_train=True).augmentations.augs]
    assert "Crop" in ours[0]


def test_detrs_crop_cuts_every_second_picture_out_of_a_larger_one(blobs):
    cfg = config(blobs, "retinanet_tiny", "INPUT.DETR_CROP", "True")
    crop, *rest = training_augmentations(cfg)
    off = training_augmentations(config(blobs, "retinanet_tiny"))
    assert [repr(augmentation) for augmentation in rest] == [repr(a) for a in off]
    np.random.seed(0)
    picture = np.zeros((100, 150, 3), np.uint8)
    pictures = [AugInput(picture) for _ in range(60)]
    for each in pictures:
        crop(each)
    sizes = [each.image.shape[:2] for each in pictures]
    cut = [size for size in sizes if size != (100, 150)]
    assert 20 <= len(cut) <= 40
    heights, widths = zip(*cut, strict=True)
    # Before the cut they are 400, 500 or 600 pixels high, and 600, 750 or 900 wide.
    assert min(heights + widths) >= 384
    assert max(heights + widths) <= 600
    assert len(set(cut)) > len(cut) // 2


@pytest.mark.parametrize("detector", ["retinanet_tiny", "mask_rcnn_tiny"])
@pytest.mark.parametrize("augmentation", ["STRONG_AUGMENTATION", "DETR_CROP"])
def test_boxes_and_masks_follow_the_pictures(detector, augmentation, blobs):
    """The objects are bright rectangles of one colour: each box must still be full of it."""
    cfg = config(blobs, detector, f"INPUT.{augmentation}", "True")
    batches = iter(build_train_loader(cfg))
    boxes = 0
    for image in (image for _ in range(6) for image in next(batches)):
        pixels, instances = image["image"].float(), image["instances"]
        for index, (x0, y0, x1, y1) in enumerate(instances.gt_boxes.tensor.round().int().tolist()):
            if min(x1 - x0, y1 - y0) < 8:
                continue
            # Blue, green and red of BGR are classes 9, 5 and 2, the indices 2, 1 and 0.
            channel = 2 - int(instances.gt_classes[index])
            inside = pixels[channel, y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
            assert np.median(inside) > np.median(pixels[channel]) + 40
            boxes += 1
        if cfg.MODEL.MASK_ON:
            around = instances.gt_masks.get_bounding_boxes().tensor
            assert (around - instances.gt_boxes.tensor).abs().max() <= 1
    assert boxes > 30


def test_pictures_differ_in_size_of_objects_and_in_brightness(blobs):
    def spread(*options):
        batches = iter(build_train_loader(config(blobs, "retinanet_tiny", *options)))
        images = [image for _ in range(8) for image in next(batches)]
        brightness = [image["image"].float().mean().item() for image in images]
        widths = [
            (i["instances"].gt_boxes.tensor[:, 2:] - i["instances"].gt_boxes.tensor[:, :2]).max()
            for i in images
            if len(i["instances"])
        ]
        return np.std(brightness), max(widths)

    plain, strong = spread(), spread("INPUT.STRONG_AUGMENTATION", "True")
    assert strong[0] > plain[0]
    assert strong[1] > plain[1]
