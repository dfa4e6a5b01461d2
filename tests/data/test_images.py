"""Picture files of every depth, orientation and damage, as all of the project reads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bucketed_ranking.data.coco import check_dataset, clean_dataset
from bucketed_ranking.data.draw import draw_pictures
from bucketed_ranking.data.entries import DatasetEntry
from bucketed_ranking.data.images import UnreadableImageError, examine_images, read_picture
from bucketrank_cli.main import app

Writer = Callable[..., tuple[Path, Path]]

RAMP = np.linspace(0, 65535, 30 * 40).round().astype(np.uint16).reshape(30, 40)


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_grey_values_of_16_bits_become_8_by_the_whole_range(tmp_path: Path, ending: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / f"a.{ending}")
    values = np.asarray(read_picture(tmp_path / f"a.{ending}"))
    assert values.dtype == np.uint8
    assert (values == np.round(RAMP / 257)).all()
    facts = examine_images(tmp_path, [f"a.{ending}"], decode=True)[f"a.{ending}"]
    assert (facts.fault, facts.deep, facts.brightest) == (None, True, 65535)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_black_and_a_white_are_not_read(tmp_path: Path, kind: type) -> None:
    Image.fromarray(RAMP.astype(kind)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match="save it with 8 or 16 bits"):
        read_picture(tmp_path / "a.tif")
    for decode in (True, False):
        facts = examine_images(tmp_path, ["a.tif"], decode)["a.tif"]
        assert facts.fault is not None


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_turned_picture_has_the_size_that_was_examined(
    tmp_path: Path, ending: str, orientation: int
) -> None:
    name = f"a.{ending}"
    Image.new("RGB", (40, 30)).save(tmp_path / name, exif=exif(orientation))
    picture = read_picture(tmp_path / name)
    assert picture.size == ((30, 40) if orientation == 6 else (40, 30))
    for decode in (True, False):
        facts = examine_images(tmp_path, [name], decode)[name]
        assert (facts.width, facts.height) == picture.size


def test_what_is_no_picture_or_too_large_is_one_kind_of_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("L", (400, 300)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name in ("text.png", "large.png", "none.png"):
        with pytest.raises(UnreadableImageError, match=r"text\.png|none\.png|120000 pixels"):
            read_picture(tmp_path / name)


def test_check_and_add_tell_of_depths_and_of_equal_names(
    home: Path, write_coco: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def edit(content: dict[str, Any]) -> None:
        content["images"][2]["file_name"] = "003.tif"
        content["categories"][0]["name"] = "cat"

    path, images = write_coco(edit)
    Image.fromarray(RAMP).save(images / "001.png")
    Image.fromarray(RAMP // 16).save(images / "002.png")
    Image.fromarray(RAMP.astype(np.float32)).save(images / "003.tif")
    arguments = ["dataset", "add", "toy", "--json", str(path), "--images", str(images)]
    added = CliRunner().invoke(app, arguments)
    assert added.exit_code == 0, added.output
    for problem in ("unreadable image", "dark 16-bit picture", "duplicate category name"):
        assert f"1 x {problem}" in added.output
    checked = CliRunner().invoke(app, ["dataset", "check", "toy"])
    assert checked.exit_code == 1
    assert "floating-point" in checked.output
    assert "brightest value 4095" in checked.output
    entry = DatasetEntry("toy", path, images)
    assert {f.kind: f.count for f in check_dataset(entry).findings}["16-bit picture"] == 2
    info = clean_dataset(entry)
    assert info.class_names == ["cat (id 3)", "cat"]
    assert (info.num_images, info.skipped["unreadable image"]) == (9, 1)


def test_drawings_show_16_bits_as_training_sees_them(
    home: Path, write_coco: Writer, tmp_path: Path
) -> None:
    path, images = write_coco(images=1)
    Image.fromarray(np.full((30, 40), 257 * 90, np.uint16)).save(images / "001.png")
    (drawn,) = draw_pictures(DatasetEntry("toy", path, images), 1, tmp_path / "out")
    assert np.asarray(Image.open(drawn))[-1, -1].tolist() == [90, 90, 90]
