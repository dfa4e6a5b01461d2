"""A small COCO-format data set on disk, for training runs of a few iterations."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_blobs(folder: Path, num_images: int, seed: int) -> Path:
    """Bright rectangles on noise, in COCO format, with masks; category ids are not contiguous."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        width, height = (96, 80) if image_id % 3 else (80, 96)
        pixels = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        for _ in range(3):
            x, y = (int(v) for v in rng.integers(0, (width - 34, height - 34)))
            w, h = (int(v) for v in rng.integers(20, 34, 2))
            category = int(rng.choice([2, 5, 9]))
            pixels[y : y + h, x : x + w, {2: 0, 5: 1, 9: 2}[category]] = 255
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": category,
                    "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )  # fmt: skip
        name = f"{image_id:03d}.jpg"
        Image.fromarray(pixels).save(folder / "images" / name, quality=95)
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
    categories = [{"id": 2, "name": "red"}, {"id": 5, "name": "green"}, {"id": 9, "name": "blue"}]
    path = folder / "instances.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return path
