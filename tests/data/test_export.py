"""Exported data sets: our readers and globox find in them what was there."""

import json

import pytest
from globox import AnnotationSet

from bucketed_ranking.data import formats
from bucketed_ranking.data.coco import clean_dataset
from bucketed_ranking.data.export import export_dataset
from bucketed_ranking.data.files import read_coco
from bucketed_ranking.data.registry import add_dataset, members
from bucketed_ranking.errors import BucketRankError
from tests.coco_blobs import write_blobs
from tests.data.test_formats import contents


@pytest.fixture
def blobs(tmp_path, home):
    path = write_blobs(tmp_path / "blobs", 9, seed=0)
    add_dataset("blobs", path, path.parent / "images", val_fraction=0.3)
    return members("blobs")


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_both_splits_come_back_as_they_were(name, blobs, tmp_path):
    lost = export_dataset(blobs, name, tmp_path / "out")
    assert lost == ([f"blobs_{s}: {n} masks are boxes now" for s, n in (("train", 18), ("val", 9))]
                    if name == "voc" else [])  # fmt: skip
    if name == "coco":
        files = [tmp_path / "out" / f"{split}.json" for split in ("train", "val")]
        entries = add_dataset(
            "again", files[0], tmp_path / "out/images/train",
            val_json=files[1], val_images=tmp_path / "out/images/val",
        )  # fmt: skip
    else:
        assert formats.recognise(tmp_path / "out")[0] == name
        entries, skipped = formats.add_labels("again", tmp_path / "out", name, None)
        assert skipped == []
    assert [entry.name for entry in entries] == ["again_train", "again_val"]
    for before, after in zip(blobs, entries, strict=True):
        first, again = clean_dataset(before), clean_dataset(after)
        assert contents(again.json) == contents(first.json)
        assert again.has_masks == (name != "voc")


@pytest.mark.parametrize("name", ["yolo", "voc"])
def test_globox_reads_the_same_boxes(name, blobs, tmp_path):
    for annotation in (content := read_coco(blobs[0].json))["annotations"]:
        annotation.pop("segmentation")  # globox reads no polygons here
    blobs[0].json.write_text(json.dumps(content))
    out = tmp_path / "out"
    assert export_dataset(blobs[:1], name, out) == []
    if name == "yolo":
        found = AnnotationSet.from_yolo_v5(out / "labels/train", image_folder=out / "images/train")
    else:
        found = AnnotationSet.from_pascal_voc(out / "Annotations")
    expected = {picture[0]: picture[3] for picture in contents(clean_dataset(blobs[0]).json)}
    assert found.image_ids == expected.keys()
    for picture in found:
        boxes = [box.ltwh for box in picture.boxes]
        for box, (_, true) in zip(boxes, expected[picture.image_id], strict=True):
            assert box == pytest.approx(true, abs=1e-4)


def test_what_a_format_cannot_hold_is_counted(blobs, tmp_path):
    content = read_coco(blobs[0].json)
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["segmentation"].append([1, 1, 5, 1, 5, 5])
    blobs[0].json.write_text(json.dumps(content))
    lost = export_dataset(blobs, "yolo", tmp_path / "out")
    assert sum("1 crowds are left out" in sentence for sentence in lost) == 1
    assert sum("masks are boxes now" in sentence for sentence in lost) == 1
    lines = [f.read_text() for f in (tmp_path / "out" / "labels").rglob("*.txt")]
    assert sum(text.count("\n") for text in lines) == 26


def test_a_wrong_target_is_one_sentence(blobs, tmp_path):
    with pytest.raises(BucketRankError, match="no format 'kitti' to export to; choose one of coco"):
        export_dataset(blobs, "kitti", tmp_path / "out")
    with pytest.raises(BucketRankError, match="is not empty"):
        export_dataset(blobs, "coco", tmp_path)
