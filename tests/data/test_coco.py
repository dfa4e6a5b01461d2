"""Checks and cleaning of COCO JSON: everything wrong is found, counted and survived."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bucketed_ranking.data import coco, images
from bucketed_ranking.data.cleaning import KINDS
from bucketed_ranking.data.coco import check_dataset, clean_dataset
from bucketed_ranking.data.entries import DatasetEntry
from bucketed_ranking.data.registry import add_dataset
from bucketed_ranking.data.summary import summarise
from bucketed_ranking.errors import BucketRankError

Edit = Callable[[dict[str, Any]], object]
Writer = Callable[..., tuple[Path, Path]]
Make = Callable[..., DatasetEntry]


@pytest.fixture
def make(home: Path, write_coco: Writer) -> Make:
    def make_entry(edit: Edit | None = None, **options: Any) -> DatasetEntry:
        return DatasetEntry("toy", *write_coco(edit, **options))

    return make_entry


def _clean(entry: DatasetEntry) -> dict[str, Any]:
    return json.loads(clean_dataset(entry).json.read_text())


def _kinds(entry: DatasetEntry) -> dict[str, int]:
    return {finding.kind: finding.count for finding in check_dataset(entry).findings}


def _box(index: int, box: list[Any]) -> Edit:
    return lambda content: content["annotations"][index].update(bbox=box)


def test_a_good_data_set_has_no_findings(make: Make) -> None:
    entry = make()
    report = check_dataset(entry)
    assert report.ok
    assert report.findings == []
    assert (report.num_images, report.num_annotations) == (10, 20)
    clean = clean_dataset(entry)
    assert (clean.num_images, clean.num_annotations, clean.skipped) == (10, 20, {})
    assert clean.category_ids == [3, 7]
    assert clean.class_names == ["cat", "dog"]
    assert not clean.has_masks


def test_area_and_crowd_flag_are_filled_in(make: Make) -> None:
    for annotation in _clean(make())["annotations"]:
        assert annotation["area"] == 120
        assert annotation["iscrowd"] == 0


@pytest.mark.parametrize(
    "box", [[5, 5, 0, 9], [5, 5, 9, 0], [5, 5, -3, 4], [float("nan"), 5, 3, 4], [5, 5, 1e400, 4]]
)
def test_degenerate_boxes_are_skipped(make: Make, box: list[float]) -> None:
    entry = make(_box(4, box))
    assert _kinds(entry) == {"degenerate box": 1}
    assert clean_dataset(entry).skipped == {"degenerate box": 1}
    assert 5 not in {annotation["id"] for annotation in _clean(entry)["annotations"]}


def test_boxes_are_cut_at_the_edge(make: Make) -> None:
    entry = make(_box(0, [-4, 20, 14, 15]))
    assert _kinds(entry) == {"box reaches outside": 1}
    first = _clean(entry)["annotations"][0]
    assert first["bbox"] == [0, 20, 10, 10]
    assert first["area"] == 100


@pytest.mark.parametrize("box", [[40, 5, 10, 10], [-20, 5, 10, 10], [39.5, 5, 10, 10]])
def test_boxes_outside_are_skipped(make: Make, box: list[float]) -> None:
    assert clean_dataset(make(_box(0, box))).skipped == {"box outside image": 1}


def test_rounding_errors_at_the_edge_are_not_worth_a_word(make: Make) -> None:
    entry = make(_box(0, [30.1, 5, 9.9000001, 10]))
    assert check_dataset(entry).ok
    x, _, width, _ = _clean(entry)["annotations"][0]["bbox"]
    assert x + width <= 40


def test_thin_boxes_are_reported_and_kept(make: Make) -> None:
    entry = make(_box(0, [5, 5, 0.5, 10]))
    assert _kinds(entry) == {"box under one pixel": 1}
    assert clean_dataset(entry).num_annotations == 20


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bbox": None}, "malformed annotation"),
        ({"bbox": [1, 2, 3]}, "malformed annotation"),
        ({"bbox": ["1", 2, 3, 4]}, "malformed annotation"),
        ({"bbox": [1, 2, 10**400, 4]}, "malformed annotation"),
        ({"category_id": 99}, "unknown category id"),
        ({"image_id": 99}, "unknown image id"),
    ],
)
def test_annotations_that_cannot_be_used_are_skipped(
    make: Make, change: dict[str, Any], kind: str
) -> None:
    entry = make(lambda content: content["annotations"][2].update(change))
    assert _kinds(entry) == {kind: 1}
    assert clean_dataset(entry).skipped == {kind: 1}


def test_annotations_that_are_no_objects_are_skipped(make: Make) -> None:
    assert _kinds(make(lambda content: content["annotations"].append(7))) == {
        "malformed annotation": 1
    }


def test_ids_given_as_text_match_numbers(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["image_id"] = str(annotation["image_id"])
            annotation["category_id"] = str(annotation["category_id"])

    entry = make(edit)
    assert check_dataset(entry).ok
    first = _clean(entry)["annotations"][0]
    assert (first["image_id"], first["category_id"]) == (1, 3)


def test_ids_with_a_decimal_point_match_whole_numbers(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        for record in content["images"][:5]:
            record["id"] = float(record["id"])
        for annotation in content["annotations"][::2]:
            annotation["image_id"] = float(annotation["image_id"])
            annotation["category_id"] = float(annotation["category_id"])

    entry = make(edit)
    assert check_dataset(entry).ok
    clean = _clean(entry)
    assert {type(image["id"]) for image in clean["images"]} == {int}
    assert {annotation["image_id"] for annotation in clean["annotations"]} == set(range(1, 11))


@pytest.mark.parametrize("names", [["", "b/1"], ["12", "x"], ["06", "6"]])
def test_pictures_with_words_as_ids_are_numbered(make: Make, names: list[str]) -> None:
    """Evaluations ask for whole numbers; text that is one stays that number."""

    def edit(content: dict[str, Any]) -> None:
        for name, old in zip(names, (4, 6), strict=True):
            content["images"][old - 1]["id"] = name
            for annotation in content["annotations"]:
                if annotation["image_id"] == old:
                    annotation["image_id"] = name

    entry = make(edit)
    report = check_dataset(entry)
    assert report.ok
    assert [(each.kind, each.severity) for each in report.findings] == [
        ("image id in words", "note")
    ]
    clean = _clean(entry)
    assert [image["id"] for image in clean["images"]] == list(range(1, 11))
    assert Counter(a["image_id"] for a in clean["annotations"]) == dict.fromkeys(range(1, 11), 2)


@pytest.mark.parametrize("number", [10**400, 2**63, True, 1.5, None, [1]])
def test_what_is_no_id_of_64_bits_is_malformed(make: Make, number: Any) -> None:
    assert _kinds(make(lambda content: content["images"][0].update(id=number))) == {
        "malformed image record": 1,
        "unknown image id": 2,
    }


def test_only_crowds_are_nothing_to_train_on(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1

    with pytest.raises(BucketRankError, match="no objects: every annotation is a crowd"):
        clean_dataset(make(edit))


def test_deeply_nested_json_is_told(make: Make) -> None:
    entry = make()
    entry.json.write_text('{"images": ' + "[" * 200_000 + "]" * 200_000 + "}")
    assert _kinds(entry) == {"unreadable JSON": 1}
    with pytest.raises(BucketRankError, match="nested too deeply"):
        clean_dataset(entry)


def test_one_picture_cannot_be_parted(home: Path, write_coco: Writer) -> None:
    path, images = write_coco(images=1)
    with pytest.raises(BucketRankError, match="fewer than two pictures"):
        add_dataset("toy", path, images, val_fraction=0.5)
    assert [entry.name for entry in add_dataset("toy", path, images)] == ["toy"]


def test_duplicates_are_found(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["images"].append(dict(content["images"][0]))
        content["annotations"].append(dict(content["annotations"][0]))
        content["annotations"][5]["id"] = 2
        content["categories"].append({"id": 3, "name": "bird"})
        content["categories"].append({"id": 9, "name": "dog"})

    entry = make(edit)
    assert _kinds(entry) == {
        "duplicate image id": 1,
        "duplicate annotation": 1,
        "duplicate annotation id": 1,
        "duplicate category id": 1,
        "duplicate category name": 1,
    }
    content = _clean(entry)
    assert len(content["images"]) == 10
    ids = [annotation["id"] for annotation in content["annotations"]]
    assert len(ids) == len(set(ids)) == 20


def test_annotations_of_an_id_that_two_files_share_train_neither(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["images"][1]["id"] = 1

    entry = make(edit)
    assert _kinds(entry) == {"image id of several files": 2, "unknown image id": 2}
    content = _clean(entry)
    assert [image["id"] for image in content["images"]] == list(range(3, 11))
    assert {annotation["image_id"] for annotation in content["annotations"]} == set(range(3, 11))


def test_missing_and_zero_annotation_ids_are_given(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        del content["annotations"][0]["id"]
        content["annotations"][1]["id"] = 0

    entry = make(edit)
    assert check_dataset(entry).ok
    ids = [annotation["id"] for annotation in _clean(entry)["annotations"]]
    assert min(ids) > 0
    assert len(set(ids)) == 20


def test_malformed_images_and_categories_are_found(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["images"] += [{"id": 77}, {"file_name": "x.png"}, None]
        content["categories"] += [{"id": 8}, {"name": "x"}, 3]

    assert _kinds(make(edit)) == {"malformed category": 3, "malformed image record": 3}


def test_missing_unreadable_and_truncated_pictures_are_skipped(make: Make) -> None:
    entry = make()
    (entry.images / "001.png").unlink()
    (entry.images / "002.png").write_text("not a picture")
    noise = Image.effect_noise((40, 30), 90)
    noise.save(entry.images / "003.png")
    whole = (entry.images / "003.png").read_bytes()
    (entry.images / "003.png").write_bytes(whole[: len(whole) // 2])
    (entry.images / "004.png").write_bytes(b"")
    assert _kinds(entry) == {"missing image": 1, "unreadable image": 3}
    clean = clean_dataset(entry)
    assert clean.skipped == {
        "missing image": 1,
        "unreadable image": 3,
        "annotation of a skipped image": 8,
    }
    assert (clean.num_images, clean.num_annotations) == (6, 12)


def test_truncated_jpegs_are_found(make: Make) -> None:
    entry = make(lambda content: content["images"][0].update(file_name="001.jpg"))
    Image.effect_noise((40, 30), 90).save(entry.images / "001.jpg")
    whole = (entry.images / "001.jpg").read_bytes()
    assert check_dataset(entry).ok
    (entry.images / "001.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    assert _kinds(entry) == {"unreadable image": 1}


def test_sizes_that_differ_from_the_file_are_skipped(make: Make) -> None:
    entry = make(lambda content: content["images"][0].update(width=30, height=40))
    assert _kinds(entry) == {"image size differs": 1}
    assert clean_dataset(entry).num_images == 9


def test_sizes_left_out_are_taken_from_the_file(make: Make) -> None:
    entry = make(lambda content: [image.pop("width") for image in content["images"]])
    assert check_dataset(entry).ok
    assert {image["width"] for image in _clean(entry)["images"]} == {40}


def test_exif_orientation_is_applied_as_detectron2_does(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["images"][0].update(width=30, height=40)

    entry = make(edit)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("001.png", "002.png"):
        Image.new("RGB", (40, 30)).save(entry.images / name, exif=exif)
    report = check_dataset(entry)
    assert {f.kind: f.count for f in report.findings} == {
        "image size differs": 1,
        "turned by EXIF": 1,
    }
    assert "EXIF" in report.findings[0].examples[0]


def test_polygon_masks_are_kept(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["segmentation"] = [[2, 3, 12, 3, 12, 15, 2, 15]]

    entry = make(edit)
    assert clean_dataset(entry).has_masks
    assert _clean(entry)["annotations"][0]["area"] == 120


def test_invalid_masks_among_masks_are_skipped(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["segmentation"] = [[2, 3, 12, 3, 12, 15], [1, 2]]
        content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
        content["annotations"][1]["segmentation"] = [[1, 2, 3, 4, 5, float("nan")]]
        content["annotations"][2]["segmentation"] = {"counts": [5, 5], "size": [3, 3]}

    entry = make(edit)
    clean = clean_dataset(entry)
    assert clean.skipped == {"invalid mask": 3}
    assert clean.has_masks
    assert _clean(entry)["annotations"][0]["segmentation"] == [[2, 3, 12, 3, 12, 15]]


def test_masks_of_a_box_data_set_do_not_cost_boxes(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["segmentation"] = []
        content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]

    entry = make(edit)
    assert _kinds(entry) == {"mask left out": 1}
    assert clean_dataset(entry).num_annotations == 20
    assert not clean_dataset(entry).has_masks


def test_crowds_stay_crowds_and_ignored_ones_become_crowds(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        counts = {"counts": [0, 1200], "size": [30, 40]}
        content["annotations"][0].update(iscrowd=1, segmentation=counts)
        content["annotations"][1]["ignore"] = 1

    entry = make(edit)
    assert _kinds(entry) == {"ignore flag": 1}
    annotations = _clean(entry)["annotations"]
    assert [annotation["iscrowd"] for annotation in annotations[:3]] == [1, 1, 0]
    assert annotations[0]["segmentation"] == {"counts": [0, 1200], "size": [30, 40]}
    assert "ignore" not in annotations[1]


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_an_empty_data_set_is_an_error(make: Make, key: str) -> None:
    entry = make(lambda content: content[key].clear())
    assert "nothing usable" in _kinds(entry)
    with pytest.raises(BucketRankError, match="has no usable"):
        clean_dataset(entry)


def test_a_wholly_invalid_data_set_says_why(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["bbox"] = [0, 0, 0, 0]

    with pytest.raises(BucketRankError, match="no usable annotations: skipped 20 degenerate box"):
        clean_dataset(make(edit))


def test_a_wrong_image_folder_is_named(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["file_name"] = f"images/{image['file_name']}"

    entry = make(edit)
    with pytest.raises(BucketRankError, match="give that folder") as caught:
        clean_dataset(entry)
    assert str(entry.images.parent) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": 3}', "\x00\xff"])
def test_json_that_cannot_be_read(make: Make, text: str) -> None:
    entry = make()
    entry.json.write_text(text, encoding="latin-1")
    report = check_dataset(entry)
    assert not report.ok
    assert _kinds(entry) == {"unreadable JSON": 1}
    with pytest.raises(BucketRankError, match=str(entry.json)):
        clean_dataset(entry)


def test_lvis_pictures_are_found_by_their_address(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["coco_url"] = f"http://somewhere/images/{image.pop('file_name')}"

    entry = make(edit)
    entry = DatasetEntry("toy", entry.json, entry.images.parent)
    assert check_dataset(entry).ok
    assert _clean(entry)["images"][0]["file_name"] == "images/001.png"


def test_examples_say_where_and_are_few(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        for annotation in content["annotations"][:9]:
            annotation["bbox"] = [0, 0, 0, 0]

    finding = check_dataset(make(edit)).findings[0]
    assert finding.count == 9
    assert len(finding.examples) == 5
    assert finding.examples[0] == "annotation 1 in '001.png', cat: box [0, 0, 0, 0]"


def test_every_kind_has_a_severity_and_a_remedy() -> None:
    assert {severity for severity, _ in KINDS.values()} <= {"error", "warning", "note"}
    assert all(remedy for _, remedy in KINDS.values())


def test_held_out_parts_share_nothing_and_lose_nothing(home: Path, write_coco: Writer) -> None:
    train, val = add_dataset("toy", *write_coco(), val_fraction=0.3)
    parts = [_clean(entry) for entry in (train, val)]
    files = [{image["file_name"] for image in part["images"]} for part in parts]
    assert (len(files[0]), len(files[1])) == (7, 3)
    assert not files[0] & files[1]
    assert [len(part["annotations"]) for part in parts] == [14, 6]
    assert check_dataset(train).ok
    assert check_dataset(val).ok


def test_held_out_pictures_go_by_name_not_by_order(home: Path, write_coco: Writer) -> None:
    entry = add_dataset("toy", *write_coco(), val_fraction=0.3)[1]
    before = {image["file_name"] for image in _clean(entry)["images"]}
    content = json.loads(entry.json.read_text())
    content["images"].reverse()
    entry.json.write_text(json.dumps(content))
    assert {image["file_name"] for image in _clean(entry)["images"]} == before


def test_both_parts_get_a_picture_however_small_the_fraction(
    home: Path, write_coco: Writer
) -> None:
    for fraction, name in ((0.001, "a"), (0.999, "b")):
        entries = add_dataset(name, *write_coco(name=name), val_fraction=fraction)
        assert min(clean_dataset(entry).num_images for entry in entries) == 1


def test_pictures_are_decoded_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = make()
    first = clean_dataset(entry)

    def never(*_: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(images, "_examine", never)
    monkeypatch.setattr(coco, "DatasetCleaner", never)
    assert clean_dataset(entry) == first


def test_a_changed_picture_or_json_is_seen(make: Make) -> None:
    entry = make()
    first = clean_dataset(entry)
    (entry.images / "001.png").unlink()
    assert clean_dataset(entry).num_images == 9
    content = json.loads(entry.json.read_text())
    content["annotations"][4]["bbox"] = [0, 0, 0, 0]
    entry.json.write_text(json.dumps(content))
    os.utime(entry.json, (1, 1))
    again = clean_dataset(entry)
    assert again.skipped["degenerate box"] == 1
    assert again.json != first.json
    assert first.json.is_file()


def test_large_data_sets_have_headers_read_only(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = make()
    noise = Image.effect_noise((40, 30), 90)
    noise.save(entry.images / "003.png")
    whole = (entry.images / "003.png").read_bytes()
    (entry.images / "003.png").write_bytes(whole[: len(whole) // 2])
    (entry.images / "004.png").unlink()
    monkeypatch.setattr(coco, "DECODE_UP_TO", 5)
    assert _kinds(entry) == {"missing image": 1}
    monkeypatch.setattr(coco, "DECODE_UP_TO", 5000)
    assert _kinds(entry) == {"missing image": 1, "unreadable image": 1}


def test_the_users_files_are_only_read(make: Make) -> None:
    entry = make(_box(0, [0, 0, 0, 0]))
    before = {path: path.stat().st_mtime_ns for path in entry.json.parent.rglob("*")}
    clean_dataset(entry)
    assert {path: path.stat().st_mtime_ns for path in entry.json.parent.rglob("*")} == before


def test_summary_counts_what_training_sees(make: Make) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [0, 0, 0, 0]
        content["annotations"][1]["iscrowd"] = 1
        content["annotations"][2]["bbox"] = [0, 0, 40, 30]

    summary = summarise(make(edit))
    assert (summary["num_images"], summary["num_empty_images"]) == (10, 1)
    assert (summary["num_boxes"], summary["num_crowds"]) == (18, 1)
    assert summary["classes"] == [
        {"name": "cat", "boxes": 9, "images": 9},
        {"name": "dog", "boxes": 9, "images": 9},
    ]
    assert summary["sizes"] == {"small": 17, "medium": 1, "large": 0}
    assert summary["widths"] == [40, 40, 40]
    assert summary["skipped"] == {"degenerate box": 1}


def test_pycocotools_takes_the_clean_json(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    coco_api = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")

    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [0, 0, 0, 0]

    ground_truth = coco_api.COCO(str(clean_dataset(make(edit)).json))
    results = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for a in ground_truth.anns.values()
    ]
    evaluator = evaluation.COCOeval(ground_truth, ground_truth.loadRes(results), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    assert evaluator.stats[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("split", "image"), [("train", "00343"), ("val", "00338"), ("test", "")])
def test_the_two_degenerate_boxes_of_bccd_are_found(
    home: Path, bccd: Path, split: str, image: str
) -> None:
    entry = DatasetEntry("b", bccd / f"annotations/instances_{split}.json", bccd / "images")
    report = check_dataset(entry)
    if not image:
        assert report.ok
        return
    assert _kinds(entry) == {"degenerate box": 1}
    assert f"BloodImage_{image}.jpg" in report.findings[0].examples[0]
    assert clean_dataset(entry).num_annotations == report.num_annotations - 1
