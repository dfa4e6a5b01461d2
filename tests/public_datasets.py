"""LVIS and Cityscapes in miniature: a few generated pictures in the data sets' own formats."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from PIL import Image

WIDTH, HEIGHT = 96, 64
# LVIS category ids: in every picture, in every other, and in one of the training set.
COMMON, UNCOMMON, RARE = 3, 207, 1203
NAMES = ("lvis_", "cityscapes_fine_")


@contextmanager
def registered_under(root: Path) -> Iterator[None]:
    """Detectron2's registrations of LVIS and Cityscapes, as made with DETECTRON2_DATASETS=root."""

    def forget() -> None:
        for name in [n for n in DatasetCatalog.list() if n.startswith(NAMES)]:
            if "panoptic" not in name:
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)

    def register(folder: str) -> None:
        builtin.register_all_lvis(folder)
        builtin.register_all_cityscapes(folder)

    forget()
    register(str(root))
    try:
        yield
    finally:
        forget()
        register(builtin._root)


def _rectangles(rng: np.random.Generator, count: int) -> list[tuple[int, int, int, int]]:
    """x, y, width, height in columns beside each other: none covers another."""
    column = WIDTH // count
    sizes = rng.integers(16, min(column, 40) - 2, (count, 2))
    return [
        (index * column + 1, int(rng.integers(1, HEIGHT - h - 1)), int(w), int(h))
        for index, (w, h) in enumerate(sizes)
    ]


def write_lvis(root: Path, split: str, num_images: int = 6) -> None:
    """lvis/lvis_v1_SPLIT.json and coco/SPLIT2017/.

    The second picture has no UNCOMMON object, and RARE among its negative categories.
    """
    rng = np.random.default_rng(num_images)
    pictures = root / "coco" / f"{split}2017"
    pictures.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, num_images + 1):
        pixels = rng.integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        categories = [COMMON, *([UNCOMMON] if number % 2 else []), *([RARE] if number == 1 else [])]
        for category, (x, y, w, h) in zip(categories, _rectangles(rng, 3), strict=False):
            pixels[y : y + h, x : x + w, category % 3] = 255
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": category,
                    "bbox": [x, y, w, h], "area": w * h,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )  # fmt: skip
        name = f"{number:012d}.jpg"
        Image.fromarray(pixels).save(pictures / name, quality=95)
        images.append(
            {
                "id": number, "width": WIDTH, "height": HEIGHT,
                "coco_url": f"http://images.cocodataset.org/{split}2017/{name}",
                "neg_category_ids": [RARE] if number == 2 else [],
                "not_exhaustive_category_ids": [],
            }
        )  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": LVIS_CATEGORIES}
    path = root / "lvis" / f"lvis_v1_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def write_cityscapes(root: Path, split: str, num_images: int = 4) -> None:
    """cityscapes/leftImg8bit/SPLIT/ and cityscapes/gtFine/SPLIT/, of one city.

    Each picture has a car, a person, a road, and a group of people, which counts as a crowd.
    """
    rng = np.random.default_rng(num_images)
    pictures = root / "cityscapes" / "leftImg8bit" / split / "aachen"
    truth = root / "cityscapes" / "gtFine" / split / "aachen"
    pictures.mkdir(parents=True)
    truth.mkdir(parents=True)
    ids = {"road": 7, "car": 26, "person": 24, "persongroup": 24}
    for number in range(num_images):
        stem = f"aachen_{number:06d}_000019"
        pixels = rng.integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        labels = np.full((HEIGHT, WIDTH), ids["road"], np.uint8)
        instances = labels.astype(np.uint16)
        border = [[0, 0], [WIDTH - 1, 0], [WIDTH - 1, HEIGHT - 1], [0, HEIGHT - 1]]
        objects = [{"label": "road", "polygon": border}]
        shapes = zip(("car", "person", "persongroup"), _rectangles(rng, 3), strict=True)
        for label, (x, y, w, h) in shapes:
            pixels[y : y + h, x : x + w, ids[label] % 3] = 255
            labels[y : y + h, x : x + w] = ids[label]
            crowd = label.endswith("group")
            instances[y : y + h, x : x + w] = ids[label] if crowd else 1000 * ids[label]
            # Polygons are drawn with their last pixel.
            right, bottom = x + w - 1, y + h - 1
            polygon = [[x, y], [right, y], [right, bottom], [x, bottom]]
            objects.append({"label": label, "polygon": polygon})
        Image.fromarray(pixels).save(pictures / f"{stem}_leftImg8bit.png")
        Image.fromarray(instances).save(truth / f"{stem}_gtFine_instanceIds.png")
        Image.fromarray(labels).save(truth / f"{stem}_gtFine_labelIds.png")
        content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
        (truth / f"{stem}_gtFine_polygons.json").write_text(json.dumps(content))
