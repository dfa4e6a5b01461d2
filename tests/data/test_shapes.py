"""The embedded data set: same every time, whole or absent, and well annotated."""

import hashlib
import json
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bucketed_ranking.data import shapes
from bucketed_ranking.data.shapes import annotations
from bucketed_ranking.data.shapes.annotations import trace_polygons
from bucketed_ranking.data.shapes.classes import CLASS_NAMES, WEIGHTS
from bucketed_ranking.data.shapes.sampling import UniformSampler
from bucketed_ranking.data.shapes.scene import draw_scene
from bucketed_ranking.errors import BucketRankError

SIZES = {"train": 40, "val": 4}
FEW = {"train": 2, "val": 1}
MEAN_COLORS = {
    "train/000000.jpg": (111.55, 101.83, 149.14),
    "train/000039.jpg": (98.54, 98.85, 99.14),
    "val/000003.jpg": (136.22, 132.44, 165.82),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.ensure_shapes(tmp_path_factory.mktemp("home") / "shapes", SIZES)


def _load(folder: Path, split: str = "train") -> dict[str, Any]:
    return json.loads(shapes.annotations_file(folder, split).read_text())


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _folders(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.is_dir()]


def test_every_byte_is_the_same_again(folder: Path, tmp_path: Path) -> None:
    again = shapes.ensure_shapes(tmp_path / "shapes", SIZES)
    assert _digests(again) == _digests(folder)


def test_annotations_are_those_of_this_version(folder: Path) -> None:
    """A change here is a new version: numbers measured on the old one no longer compare."""
    content = _load(folder)
    assert content["info"]["version"] == str(shapes.VERSION)
    boxes = json.dumps([[a["category_id"], a["bbox"], a["area"]] for a in content["annotations"]])
    assert hashlib.sha256(boxes.encode()).hexdigest()[:16] == "557a9d6c2e113cda"
    file = shapes.annotations_file(folder, "train").read_bytes()
    assert hashlib.sha256(file).hexdigest()[:16] == "327089471dffd1e1"


def test_pictures_are_those_of_this_version(folder: Path) -> None:
    """Colours pass through floating point, so bytes differ between machines, but no more."""
    for name, color in MEAN_COLORS.items():
        pixels = cv2.imread(str(folder / name))
        assert pixels.mean((0, 1)) == pytest.approx(color, abs=0.2)


def test_a_picture_does_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path) -> None:
    fewer = shapes.ensure_shapes(tmp_path / "shapes", FEW)
    name = "train/000001.jpg"
    assert (fewer / name).read_bytes() == (folder / name).read_bytes()


def test_splits_differ(folder: Path) -> None:
    assert (folder / "train/000000.jpg").read_bytes() != (folder / "val/000000.jpg").read_bytes()


def test_json_matches_the_pictures(folder: Path) -> None:
    for split, size in SIZES.items():
        content = _load(folder, split)
        assert [c["name"] for c in content["categories"]] == list(CLASS_NAMES)
        assert len(content["images"]) == size
        assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
        for image in content["images"]:
            height, width = cv2.imread(str(folder / split / image["file_name"])).shape[:2]
            assert (width, height) == (image["width"], image["height"])
            assert min(width, height) >= 160
            assert max(width, height) <= 256


def test_polygons_cover_exactly_the_visible_pixels(folder: Path) -> None:
    mask_util = pytest.importorskip("pycocotools.mask")
    content = _load(folder)
    images = {image["id"]: image for image in content["images"]}
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        polygons = mask_util.frPyObjects(
            annotation["segmentation"], image["height"], image["width"]
        )
        mask = mask_util.merge(polygons)
        assert mask_util.area(mask) == pytest.approx(annotation["area"], rel=0.02)
        assert np.abs(mask_util.toBbox(mask) - annotation["bbox"]).max() <= 1


def test_polygons_leave_holes_out() -> None:
    mask_util = pytest.importorskip("pycocotools.mask")
    ring = np.zeros((40, 50), bool)
    ring[5:35, 5:45] = True
    ring[15:25, 15:35] = False
    polygons = mask_util.frPyObjects(trace_polygons(ring, 0, 0), 40, 50)
    assert np.array_equal(mask_util.decode(mask_util.merge(polygons)).astype(bool), ring)


def test_masks_do_not_overlap_and_what_is_hidden_is_dropped() -> None:
    for index in range(10):
        picture, objects = draw_scene(UniformSampler(1, index))
        assert picture.dtype == np.uint8
        assert picture.shape[:2] == objects[0].mask.shape
        assert np.sum([o.mask for o in objects], axis=0).max() == 1
        assert min(int(o.mask.sum()) for o in objects) >= 64


def test_classes_have_a_long_tail(folder: Path) -> None:
    assert len(CLASS_NAMES) >= 8
    assert WEIGHTS[0] / WEIGHTS[-1] == pytest.approx(6)
    counts = Counter(a["category_id"] for a in _load(folder)["annotations"])
    assert counts[1] > counts[4] > counts[8]


def test_objects_are_large_enough_to_be_learnt(folder: Path) -> None:
    sides = [np.sqrt(a["bbox"][2] * a["bbox"][3]) for a in _load(folder)["annotations"]]
    assert np.mean([24 <= side <= 96 for side in sides]) > 0.9


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(dice: UniformSampler) -> Any:
        calls.append(dice)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw_scene(dice)

    monkeypatch.setattr(annotations, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shapes.ensure_shapes(tmp_path / "shapes", SIZES)
    assert _folders(tmp_path) == []


def test_a_damaged_folder_is_made_anew(tmp_path: Path) -> None:
    folder = shapes.ensure_shapes(tmp_path / "shapes", FEW)
    before = _digests(folder)
    (folder / "train/000001.jpg").unlink()
    assert _digests(shapes.ensure_shapes(tmp_path / "shapes", FEW)) == before
    assert _folders(tmp_path) == [folder.name]


def test_several_processes_at_once_make_one_whole_folder(tmp_path: Path, folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "shapes", {"train": 6, "val": 1})
    workers = [context.Process(target=shapes.ensure_shapes, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert _folders(tmp_path) == ["shapes"]
    assert len(list(tmp_path.rglob("*.jpg"))) == 7


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BucketRankError, match="BUCKETRANK_HOME"):
        shapes.ensure_shapes(tmp_path / "file" / "shapes", FEW)


def test_the_default_place_is_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKETRANK_HOME", str(tmp_path))
    assert shapes.shapes_folder() == tmp_path / f"shapes-v{shapes.VERSION}"


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    left = tmp_path / ".shapes.unfinished/train/000007.jpg"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"")
    folder = shapes.ensure_shapes(tmp_path / "shapes", FEW)
    assert _folders(tmp_path) == ["shapes"]
    pictures = sorted(path.name for path in (folder / "train").iterdir())
    assert pictures == ["000000.jpg", "000001.jpg"]
