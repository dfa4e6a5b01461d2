"""What Detectron2 gets to know of a data set."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from bucketed_ranking.data import registry, shapes
from bucketed_ranking.data.catalog import register, require_same_classes
from bucketed_ranking.data.coco import DatasetInfo
from bucketed_ranking.data.registry import add_dataset
from bucketed_ranking.errors import BucketRankError

pytestmark = pytest.mark.detectron2
Writer = Callable[..., tuple[Path, Path]]


@pytest.fixture(autouse=True)
def forget(home: Path) -> Any:
    """Takes what a test registered out of Detectron2's catalogs again."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _spoil(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"] = [0, 0, 0, 0]


def test_describes_and_registers(write_coco: Writer, caplog: pytest.LogCaptureFixture) -> None:
    path, images = write_coco(_spoil)
    add_dataset("toy", path, images)
    with caplog.at_level(logging.WARNING, "bucketed_ranking.data"):
        info = register("toy")
    assert (info.name, info.images, info.evaluator) == ("toy", images, "coco")
    assert (info.num_classes, info.class_names) == (2, ["cat", "dog"])
    assert (info.num_images, info.num_annotations, info.has_masks) == (10, 19, False)
    assert info.category_ids == [3, 7]
    assert info.skipped == {"degenerate box": 1}
    warnings = [r.getMessage() for r in caplog.records if r.name == "bucketed_ranking.data"]
    assert len(warnings) == 1
    assert "skipped 1 degenerate box" in warnings[0]
    assert MetadataCatalog.get("toy").thing_classes == ["cat", "dog"]
    records = DatasetCatalog.get("toy")
    assert sum(len(record["annotations"]) for record in records) == 19
    assert {a["category_id"] for r in records for a in r["annotations"]} == {0, 1}
    assert Path(records[0]["file_name"]).is_file()


def test_registering_again_changes_and_says_nothing(
    write_coco: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    add_dataset("toy", *write_coco(_spoil))
    first = register("toy")
    DatasetCatalog.get("toy")
    caplog.clear()
    assert register("toy") == first
    assert caplog.records == []


def test_changed_files_are_registered_anew(write_coco: Writer) -> None:
    path, images = write_coco()
    add_dataset("toy", path, images)
    register("toy")
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "wolf"
    path.write_text(json.dumps(content))
    assert register("toy").class_names == ["cat", "wolf"]
    assert len(DatasetCatalog.get("toy")) == 10
    assert MetadataCatalog.get("toy").thing_classes == ["cat", "wolf"]


@pytest.mark.parametrize("text_ids", [False, True])
def test_detectron2s_evaluator_works_on_it(
    write_coco: Writer, tmp_path: Path, text_ids: bool
) -> None:
    def edit(content: dict[str, Any]) -> None:
        _spoil(content)
        if text_ids:
            for image in content["images"]:
                image["id"] = f"image {image['id']}"
            for annotation in content["annotations"]:
                annotation["image_id"] = f"image {annotation['image_id']}"

    add_dataset("toy", *write_coco(edit))
    register("toy")
    evaluator = COCOEvaluator("toy", output_dir=str(tmp_path / "out"))
    evaluator.reset()
    for record in DatasetCatalog.get("toy"):
        found = Instances((record["height"], record["width"]))
        boxes = [a["bbox"] for a in record["annotations"]]
        found.pred_boxes = Boxes([[x, y, x + w, y + h] for x, y, w, h in boxes])
        found.pred_classes = _tensor([a["category_id"] for a in record["annotations"]])
        found.scores = _tensor([0.9] * len(boxes))
        evaluator.process([record], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100.0)


def _tensor(values: list[Any]) -> Any:
    import torch

    return torch.tensor(values)


def test_the_embedded_data_set_registers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = shapes.ensure_shapes(home / "shapes", {"train": 3, "val": 2})
    monkeypatch.setattr(registry, "ensure_shapes", lambda: small)
    monkeypatch.setattr(registry, "shapes_folder", lambda: small)
    info = register("shapes_train")
    assert (info.num_classes, info.num_images, info.has_masks) == (8, 3, True)
    assert len(DatasetCatalog.get("shapes_train")) == 3


def test_detectron2s_own_keep_their_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_coco: Writer
) -> None:
    before = MetadataCatalog.get("coco_2017_val_100").json_file
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "d2"))
    with pytest.raises(BucketRankError, match=r"absent.*DETECTRON2_DATASETS"):
        register("coco_2017_val_100")
    path, images = write_coco()
    (tmp_path / "d2/coco/annotations").mkdir(parents=True)
    shutil.copy(path, tmp_path / "d2/coco/annotations/instances_val2017_100.json")
    shutil.copytree(images, tmp_path / "d2/coco/val2017")
    info = register("coco_2017_val_100")
    assert (info.num_images, info.evaluator) == (10, "coco")
    assert MetadataCatalog.get("coco_2017_val_100").json_file == before


def test_unknown_and_empty_data_sets_are_errors(write_coco: Writer) -> None:
    with pytest.raises(BucketRankError, match="There is no data set"):
        register("nothing")
    add_dataset("empty", *write_coco(lambda content: content["annotations"].clear()))
    with pytest.raises(BucketRankError, match="no usable annotations"):
        register("empty")


def test_training_and_validation_must_have_the_same_classes() -> None:
    def info(name: str, *classes: str) -> DatasetInfo:
        return DatasetInfo(
            name, Path(), Path(), list(range(len(classes))), list(classes), 1, 1, False
        )

    require_same_classes(info("a", "cat", "dog"), info("b", "cat", "dog"))
    with pytest.raises(BucketRankError, match="2 against 1 classes"):
        require_same_classes(info("a", "cat", "dog"), info("b", "cat"))
    with pytest.raises(BucketRankError, match="class 1 is 'dog' in the first and 'cow'"):
        require_same_classes(info("a", "cat", "dog"), info("b", "cat", "cow"))
