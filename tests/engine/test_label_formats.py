"""The same labels in several formats train to the same losses from one seed."""

import json
from pathlib import Path

import pytest
from globox import AnnotationSet

from bucketed_ranking.data import formats
from bucketed_ranking.engine import runs
from bucketed_ranking.engine.setup import configure_datasets
from tests.coco_blobs import write_blobs
from tests.small_detectors import narrow_config

CLASSES = ["blue", "green", "red"]
SHORT = ["SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "100"]


def write_coco(folder: Path) -> None:
    """Categories in the order of their names, which is what formats without a list get."""
    path = write_blobs(folder, 6, seed=0)
    content = json.loads(path.read_text())
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    index = {9: 0, 5: 1, 2: 2}
    for annotation in content["annotations"]:
        annotation["category_id"] = index[annotation["category_id"]]
    path.write_text(json.dumps(content))


def write_boxes(name: str, folder: Path) -> None:
    labels = AnnotationSet.from_coco(folder / "instances.json")
    if name == "yolo":
        labels.save_yolo_v5(folder / "labels", label_to_id={c: i for i, c in enumerate(CLASSES)})
        (folder / "labels" / "classes.txt").write_text("\n".join(CLASSES))
    elif name == "voc":
        labels.save_pascal_voc(folder / "xml")
    elif name == "labelme":
        labels.save_labelme(folder / "json")


def write_masks(name: str, folder: Path) -> None:
    """By hand: globox writes no polygons."""
    content = json.loads((folder / "instances.json").read_text())
    (folder / "labels").mkdir()
    (folder / "labels" / "classes.txt").write_text("\n".join(CLASSES))
    for image in content["images"]:
        width, height, stem = image["width"], image["height"], Path(image["file_name"]).stem
        objects = [
            (a["category_id"], a["segmentation"][0])
            for a in content["annotations"]
            if a["image_id"] == image["id"]
        ]
        if name == "yolo-seg":
            lines = [
                " ".join([str(c), *(f"{v / (width, height)[i % 2]:.6f}" for i, v in enumerate(p))])
                for c, p in objects
            ]
            (folder / "labels" / f"{stem}.txt").write_text("\n".join(lines))
        elif name == "labelme":
            shapes = [
                {"label": CLASSES[c], "shape_type": "polygon",
                 "points": list(zip(p[::2], p[1::2], strict=True))}
                for c, p in objects
            ]  # fmt: skip
            about = {"imagePath": f"../images/{stem}.jpg", "imageWidth": width}
            text = json.dumps({**about, "imageHeight": height, "shapes": shapes})
            (folder / "labels" / f"{stem}.json").write_text(text)


def losses(detector: str, format_name: str, root: Path, write) -> dict[str, float]:
    folder = root / format_name
    write_coco(folder)
    write(format_name, folder)
    if format_name != "coco":
        (folder / "instances.json").unlink()
    dataset = f"{detector}-{format_name}".replace("_", "-")
    formats.add_labels(dataset, folder, format_name, None)
    cfg = narrow_config(detector, "brs", *SHORT)
    configure_datasets(cfg, dataset, dataset)
    cfg.SEED, cfg.OUTPUT_DIR = 3, str(folder / "run")
    return runs.train(cfg)["final_losses"]


@pytest.mark.parametrize(
    ("detector", "names", "write"),
    [
        ("retinanet_tiny", ["yolo", "voc", "labelme"], write_boxes),
        ("mask_rcnn_tiny", ["yolo-seg", "labelme"], write_masks),
    ],
)
def test_every_format_trains_to_the_same_losses(detector, names, write, tmp_path):
    expected = losses(detector, "coco", tmp_path, write)
    assert len(expected) >= 3
    for name in names:
        assert losses(detector, name, tmp_path, write) == expected, name
