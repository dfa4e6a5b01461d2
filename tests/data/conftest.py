"""Small COCO data sets, written on demand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test's own, and no project folder around the current one."""
    folder = tmp_path / "home"
    monkeypatch.setenv("BUCKETRANK_HOME", str(folder))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes ten pictures of 40 x 30 with two boxes each; ``edit`` changes the JSON before."""

    def write(
        edit: Callable[[dict[str, Any]], object] | None = None, name: str = "toy", images: int = 10
    ) -> tuple[Path, Path]:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        content = coco_content(images)
        for image in content["images"]:
            color = (10 * image["id"] % 256, 90, 120)
            Image.new("RGB", (40, 30), color).save(folder / "images" / image["file_name"])
        if edit is not None:
            edit(content)
        path = folder / "annotations.json"
        path.write_text(json.dumps(content))
        return path, folder / "images"

    return write


def coco_content(images: int) -> dict[str, Any]:
    """Category ids with a gap, annotations without area and iscrowd, as exporters write them."""
    annotations = []
    for image in range(1, images + 1):
        for offset, category in ((0, 3), (15, 7)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [2 + offset, 3, 10, 12],
                }
            )
    return {
        "images": [
            {"id": i, "file_name": f"{i:03d}.png", "width": 40, "height": 30}
            for i in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
