"""Pictures with boxes drawn in."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bucketed_ranking.data.draw import LabelledBox, draw_boxes, draw_masks, draw_pictures
from bucketed_ranking.data.entries import DatasetEntry
from bucketed_ranking.errors import BucketRankError

Writer = Callable[..., tuple[Path, Path]]


def test_boxes_are_drawn_where_they_are(home: Path, write_coco: Writer, tmp_path: Path) -> None:
    entry = DatasetEntry("toy", *write_coco())
    files = draw_pictures(entry, 2, tmp_path / "out")
    assert [file.name for file in files] == ["toy-001.png", "toy-006.png"]
    with Image.open(files[0]) as picture:
        pixels = np.asarray(picture)
    scale = pixels.shape[0] / 30
    paper = pixels[-1, -1]
    left_edge = pixels[int(12 * scale), round(2 * scale)]
    assert (left_edge != paper).any()
    assert (pixels[int(12 * scale), int(7 * scale)] == paper).all()


def test_masks_tint_their_pixels_alone() -> None:
    masks = np.zeros((2, 30, 40), bool)
    masks[0, :10], masks[1, 20:] = True, True
    paper = Image.new("RGB", (40, 30), (90, 90, 90))
    pixels = np.asarray(draw_masks(paper, masks, [0, 3], 4))
    colors = [np.unique(pixels[rows].reshape(-1, 3), axis=0) for rows in (slice(10), slice(20, 30))]
    assert [len(color) for color in colors] == [1, 1]
    assert (colors[0] != colors[1]).any()
    assert (pixels[10:20] == 90).all()
    assert paper.getpixel((0, 0)) == (90, 90, 90), "the picture itself stays"


def test_masks_stay_visible_where_they_overlap() -> None:
    masks = np.ones((2, 30, 40), bool)
    masks[0, :10] = False
    pixels = np.asarray(draw_masks(Image.new("RGB", (40, 30), "white"), masks, [0, 1], 2))
    assert pixels[20, 20].max() > 100
    assert (pixels[20, 20] != pixels[5, 20]).any()


@pytest.mark.parametrize("corner", [(0, 0), (630, 0), (0, 470), (630, 470), (300, 200)])
@pytest.mark.parametrize("text", ["lymphocyte 0.99", "größe λ", "низ"])
def test_names_are_written_whole_within_the_picture(corner: tuple[int, int], text: str) -> None:
    paper = Image.new("RGB", (640, 480), "white")

    def written(text: str) -> np.ndarray:
        box = LabelledBox(*corner, 10, 10, 1, text)
        return np.asarray(draw_boxes(paper, [box], 3)) != 255

    rows, columns = (written(text) & ~written("")).any(-1).nonzero()
    assert 8 <= rows.max() - rows.min() + 1 <= 24
    assert columns.max() - columns.min() >= 6 * len(text)


def test_letters_of_other_alphabets_differ() -> None:
    paper = Image.new("RGB", (640, 480), "white")
    drawn = [draw_boxes(paper, [LabelledBox(9, 99, 9, 9, 0, text)], 1) for text in ("ж", "я")]
    assert drawn[0].tobytes() != drawn[1].tobytes()


def test_boxes_of_no_detection_leave_the_picture() -> None:
    paper = Image.new("RGB", (640, 480), "white")
    assert draw_boxes(paper, [], 3).tobytes() == paper.tobytes()


def test_the_users_pictures_are_not_enlarged_when_large(
    home: Path, write_coco: Writer, tmp_path: Path
) -> None:
    def edit(content: dict) -> None:
        content["images"][0].update(width=700, height=600)

    path, images = write_coco(edit)
    Image.new("RGB", (700, 600)).save(images / "001.png")
    (file,) = draw_pictures(DatasetEntry("toy", path, images), 1, tmp_path / "out")
    with Image.open(file) as picture:
        assert picture.size == (700, 600)


def test_a_folder_that_cannot_be_written_is_an_error(
    home: Path, write_coco: Writer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BucketRankError, match="cannot be written"):
        draw_pictures(DatasetEntry("toy", *write_coco()), 1, tmp_path / "file")
