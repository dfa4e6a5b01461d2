"""Labels of other formats: globox writes them, and COCO JSON with the same content comes out."""

import json
import shutil
from pathlib import Path

import pytest
from globox import AnnotationSet
from PIL import Image

from bucketed_ranking.data import formats
from bucketed_ranking.data.coco import clean_dataset
from bucketed_ranking.data.files import read_coco
from bucketed_ranking.data.registry import find_dataset
from bucketed_ranking.errors import BucketRankError
from tests.coco_blobs import write_blobs

CLASSES = ["blue", "green", "red"]


@pytest.fixture
def blob_folder(tmp_path: Path, home: Path) -> Path:
    """Nine pictures of two sizes with three boxes each, in COCO format, and one without any."""
    folder = tmp_path / "blobs"
    write_blobs(folder, 9, seed=0)
    Image.new("RGB", (96, 80)).save(folder / "images" / "010.jpg")
    content = json.loads((folder / "instances.json").read_text())
    content["images"].append({"id": 10, "file_name": "010.jpg", "width": 96, "height": 80})
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def write_format(name: str, folder: Path) -> Path:
    """The same labels, written by globox; returns what `dataset add` takes."""
    labels = AnnotationSet.from_coco(folder / "instances.json")
    index = {label: number for number, label in enumerate(CLASSES)}
    if name == "coco":
        return folder / "instances.json"
    if name == "yolo":
        labels.save_yolo_v5(folder / "labels", label_to_id=index)
        names = "".join(f"  {number}: {label}\n" for number, label in enumerate(CLASSES))
        (folder / "data.yaml").write_text(f"train: images\nnames:\n{names}")
        (folder / "instances.json").unlink()
        return folder
    if name == "openimages":
        labels.save_openimage(folder / "boxes.csv")
        return folder / "boxes.csv"
    if name == "cvat":
        labels.save_cvat(folder / "annotations.xml")
        return folder / "annotations.xml"
    save = {"voc": labels.save_pascal_voc, "labelme": labels.save_labelme}[name]
    save(folder / name)
    (folder / "instances.json").unlink()
    return folder


def contents(path: Path) -> list[tuple]:
    """Pictures by name, each with its objects: class name and box."""
    coco = read_coco(path)
    names = {category["id"]: category["name"] for category in coco["categories"]}
    return sorted(
        (
            Path(image["file_name"]).name,
            image["width"],
            image["height"],
            [
                (names[a["category_id"]], tuple(a["bbox"]))
                for a in coco["annotations"]
                if a["image_id"] == image["id"]
            ],
        )
        for image in coco["images"]
    )


@pytest.mark.parametrize("name", ["coco", "yolo", "voc", "labelme", "cvat", "openimages"])
def test_a_format_is_recognised_and_holds_the_same_boxes(name, blob_folder):
    expected = contents(blob_folder / "instances.json")
    source = write_format(name, blob_folder)
    found, reason = formats.recognise(source)
    assert found == name
    assert reason
    (entry,), skipped = formats.add_labels("blobs", source, found, None)
    assert skipped == []
    assert find_dataset("blobs") == entry
    if name == "openimages":  # names no picture without a box
        expected = [picture for picture in expected if picture[3]]
    assert contents(entry.json) == expected
    info = clean_dataset(entry)
    assert sorted(info.class_names) == CLASSES
    assert (info.num_annotations, info.skipped) == (27, {})


def test_yolo_polygons_stay_masks(blob_folder):
    source = write_format("yolo", blob_folder)
    file = blob_folder / "labels" / "001.txt"
    file.write_text("2 0.25 0.25 0.5 0.25 0.5 0.75\n")
    (entry,), _ = formats.add_labels("blobs", source, "yolo-seg", None)
    first = read_coco(entry.json)["annotations"][0]
    assert first["segmentation"] == [[24.0, 20.0, 48.0, 20.0, 48.0, 60.0]]
    assert first["bbox"] == [24.0, 20.0, 24.0, 40.0]


def labelme(blob_folder: Path, *shapes: dict) -> list[dict]:
    content = {"imagePath": "001.jpg", "imageWidth": 96, "imageHeight": 80, "shapes": shapes}
    folder = blob_folder / "labelme"
    folder.mkdir()
    (folder / "001.json").write_text(json.dumps(content))
    (entry,), skipped = formats.add_labels("shapes_of_one", blob_folder, "labelme", None)
    assert len(skipped) == sum(shape["shape_type"] == "point" for shape in shapes)
    return read_coco(entry.json)["annotations"]


def test_labelme_polygons_and_circles_stay_masks_and_groups_are_one_object(blob_folder):
    (blob_folder / "instances.json").unlink()
    triangles = [[1, 1, 9, 1, 9, 9], [20, 20, 30, 20, 30, 30]]
    points = [[[t[i], t[i + 1]] for i in (0, 2, 4)] for t in triangles]
    group = {"label": "cell", "shape_type": "polygon", "group_id": 4}
    circle = {"label": "cell", "shape_type": "circle", "points": [[50, 40], [60, 40]]}
    point = {"label": "cell", "shape_type": "point", "points": [[5, 5]]}
    one, two = labelme(
        blob_folder, {**group, "points": points[0]}, {**group, "points": points[1]}, circle, point
    )
    assert one["segmentation"] == triangles
    assert one["bbox"] == [1, 1, 29, 29]
    assert two["bbox"] == pytest.approx([40, 30, 20, 20])


def test_cvat_polygons_stay_masks_and_labels_keep_their_order(blob_folder):
    shapes = (
        '<polygon label="zebra" points="1,2;9,2;9.5,8"/><box label="ant" xtl="10" ytl="10" '
        'xbr="30" ybr="20" rotation="90"/><polyline label="ant" points="1,2;9,2"/>'
    )
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("zebra", "ant", "bee"))
    (blob_folder / "annotations.xml").write_text(
        f"<annotations><meta><task><labels>{labels}</labels></task></meta>"
        f'<image name="images/001.jpg" width="96" height="80">{shapes}</image></annotations>'
    )
    (entry,), skipped = formats.add_labels("blobs", blob_folder / "annotations.xml", "cvat", None)
    content = read_coco(entry.json)
    assert [category["name"] for category in content["categories"]] == ["zebra", "ant", "bee"]
    polygon, box = content["annotations"]
    assert polygon["segmentation"] == [[1, 2, 9, 2, 9.5, 8]]
    assert box["bbox"] == pytest.approx([15, 5, 10, 20])
    assert len(skipped) == 1
    assert "1 x polyline" in skipped[0]


def test_a_difficult_object_of_voc_and_a_group_of_open_images_are_crowds(blob_folder):
    source = write_format("voc", blob_folder)
    file = blob_folder / "voc" / "001.xml"
    text = file.read_text()
    assert "<difficult>" not in text
    file.write_text(text.replace("<bndbox>", "<difficult>1</difficult><bndbox>", 1))
    (entry,), _ = formats.add_labels("blobs", source, "voc", None)
    assert sum(a["iscrowd"] for a in read_coco(entry.json)["annotations"]) == 1

    csv = blob_folder / "boxes.csv"
    csv.write_text(
        "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n001,/m/1,0,0.5,0,0.5,1\n"
        "001,/m/2,0.5,1,0,0.5,0\n"
    )
    (blob_folder / "class-descriptions.csv").write_text("/m/1,Flock\n/m/2,Bird\n")
    (entry,), _ = formats.add_labels("birds", csv, "openimages", None)
    group, bird = read_coco(entry.json)["annotations"]
    assert (group["iscrowd"], group["bbox"]) == (1, [0, 0, 48, 40])
    assert (bird["iscrowd"], bird["bbox"]) == (0, [48, 0, 48, 40])
    assert [c["name"] for c in read_coco(entry.json)["categories"]] == ["Bird", "Flock"]


def test_splits_of_a_data_yaml_are_both_registered(blob_folder):
    write_format("yolo", blob_folder)
    for split, names in (("train", range(1, 7)), ("valid", range(7, 11))):
        for kind, ending in (("images", "jpg"), ("labels", "txt")):
            (blob_folder / split / kind).mkdir(parents=True)
            for number in names:
                file = blob_folder / kind / f"{number:03d}.{ending}"
                if file.is_file():
                    shutil.move(file, blob_folder / split / kind / file.name)
    (blob_folder / "data.yaml").write_text(  # as Roboflow writes it
        f"train: ../train/images\nval: ../valid/images\nnc: 3\nnames: {CLASSES}\n"
    )
    entries, _ = formats.add_labels("blobs", blob_folder / "data.yaml", "yolo", None)
    assert [entry.name for entry in entries] == ["blobs_train", "blobs_val"]
    assert [len(read_coco(entry.json)["images"]) for entry in entries] == [6, 4]
    with pytest.raises(BucketRankError, match="has a validation split of its own"):
        formats.add_labels("blobs", blob_folder, "yolo", None, val_fraction=0.5)


def test_splits_of_image_sets_have_the_same_classes(blob_folder):
    write_format("voc", blob_folder)
    main = blob_folder / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "train.txt").write_text("001\n002\n")
    (main / "val.txt").write_text("003 1\n")
    entries, _ = formats.add_labels("blobs", blob_folder, "voc", None)
    assert [len(read_coco(entry.json)["images"]) for entry in entries] == [2, 1]
    train, val = (read_coco(entry.json)["categories"] for entry in entries)
    assert train == val


def test_files_of_one_name_in_several_folders_are_all_taken(blob_folder):
    """Each beside its label file: by the name alone there would be two."""
    write_format("voc", blob_folder)
    for folder in ("a", "b"):
        (blob_folder / folder).mkdir()
        for file in (blob_folder / "voc" / "001.xml", blob_folder / "images" / "001.jpg"):
            shutil.copy(file, blob_folder / folder / file.name)
    shutil.rmtree(blob_folder / "voc")
    shutil.rmtree(blob_folder / "images")
    (entry,), _ = formats.add_labels("blobs", blob_folder, "voc", None)
    content = read_coco(entry.json)
    assert [image["file_name"] for image in content["images"]] == ["a/001.jpg", "b/001.jpg"]
    assert len(content["annotations"]) == 6
    assert clean_dataset(entry).num_images == 2


def test_what_cannot_be_read_is_counted_with_file_and_line(blob_folder):
    source = write_format("yolo", blob_folder)
    lines = ["", "0 0.5 0.5 0.25 0.25", "0 a 0.5 0.1 0.1", "9 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1"]
    (blob_folder / "labels" / "001.txt").write_text("\n".join(lines))
    (entry,), skipped = formats.add_labels("blobs", source, "yolo", None)
    assert len(read_coco(entry.json)["annotations"]) == 27 - 3 + 1
    reasons = ["not all numbers", "not one of the 3 names", "neither a box"]
    for number, (reason, sentence) in enumerate(zip(reasons, skipped, strict=True), start=3):
        assert reason in sentence
        assert sentence.endswith(f"labels/001.txt:{number}")


def test_a_changed_source_is_noticed(blob_folder):
    source = write_format("yolo", blob_folder)
    (entry,), _ = formats.add_labels("blobs", source, "yolo", None)
    assert formats.changed_source(entry) is None
    (blob_folder / "labels" / "010.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert formats.changed_source(entry) == str(source)
    (again,), _ = formats.add_labels("blobs", source, "yolo", None, force=True)
    assert again.json != entry.json
    assert formats.changed_source(again) is None
    shutil.rmtree(blob_folder)
    assert formats.changed_source(again) == str(source)


def test_coco_as_it_is_exported_needs_no_image_folder(blob_folder):
    (entry,), _ = formats.add_labels("blobs", blob_folder, "coco", None)
    assert entry.images == blob_folder / "images"
    for split in ("train", "valid"):
        shutil.copytree(blob_folder / "images", blob_folder / "export" / split)
        target = blob_folder / "export" / split / "_annotations.coco.json"
        shutil.copy(blob_folder / "instances.json", target)
    entries, _ = formats.add_labels("exported", blob_folder / "export", "coco", None)
    assert [entry.images.name for entry in entries] == ["train", "valid"]


@pytest.mark.parametrize(
    ("name", "spoil", "sentence"),
    [
        ("yolo", lambda f: (f / "data.yaml").unlink(), "no class names: write a data.yaml"),
        ("yolo", lambda f: (f / "data.yaml").write_text("names: [a]"), "has no 'train'"),
        ("yolo", lambda f: (f / "data.yaml").write_text("names: {2: a}\ntrain: images"), "'names'"),
        ("yolo", lambda f: (f / "data.yaml").write_text("names: [a\n"), "is not valid YAML"),
        ("yolo", lambda f: (f / "data.yaml").write_text("names: [a]\ntrain: x"), "but there is no"),
        ("yolo", lambda f: shutil.rmtree(f / "labels"), "no labelled object in 10 pictures"),
        ("voc", lambda f: (f / "voc" / "002.xml").write_text("<annotation>"), r"002\.xml is not"),
        ("voc", lambda f: shutil.rmtree(f / "images"), "None of the 10 labelled pictures is there"),
        ("labelme", lambda f: (f / "labelme" / "002.json").write_text("{"), r"002\.json is not"),
    ],
)  # fmt: skip
def test_what_is_missing_is_one_sentence(name, spoil, sentence, blob_folder):
    source = write_format(name, blob_folder)
    spoil(blob_folder)
    with pytest.raises(BucketRankError, match=sentence) as caught:
        formats.add_labels("blobs", source, name, None)
    assert "\n" not in str(caught.value)


def test_linked_folders_are_followed_once(blob_folder, tmp_path):
    source = write_format("voc", blob_folder)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(source / "images", tmp_path / "elsewhere" / "images")
    (source / "images").symlink_to(tmp_path / "elsewhere" / "images")
    (tmp_path / "elsewhere" / "images" / "loop").symlink_to(tmp_path / "elsewhere")
    (entry,), _ = formats.add_labels("blobs", source, "voc", None)
    assert clean_dataset(entry).num_images == 10


def test_a_folder_of_pictures_alone_is_not_recognised(blob_folder):
    with pytest.raises(BucketRankError, match="is not recognised"):
        formats.recognise(blob_folder / "images")
    with pytest.raises(BucketRankError, match="There is no file or folder"):
        formats.recognise(blob_folder / "nothing")


def test_a_bad_name_writes_nothing(blob_folder, home):
    with pytest.raises(BucketRankError, match="cannot be a data set's name"):
        formats.add_labels("../blobs", blob_folder, "coco", None)
    assert not (home / "converted").exists()
