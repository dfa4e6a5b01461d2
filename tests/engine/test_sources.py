"""What is read as a picture, a video or a camera."""

from pathlib import Path

import pytest

from bucketed_ranking.engine.sources import (
    describe_source,
    find_sources,
    free_name,
    is_video,
    name_source,
)
from bucketed_ranking.errors import BucketRankError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.jpg", "a.PNG", "c.mp4", "notes.txt", "deep/er/d.ppm"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_stands_for_the_pictures_and_videos_in_it(folder):
    assert find_sources([folder]) == [folder / "a.PNG", folder / "b.jpg", folder / "c.mp4"]
    assert [is_video(source) for source in find_sources([folder])] == [False, False, True]


def test_a_pattern_finds_files_and_stars_go_into_folders(folder):
    assert find_sources(["*.jpg", "**/*.p?m"]) == [Path("b.jpg"), Path("deep/er/d.ppm")]
    assert find_sources(["*"]) == [Path("a.PNG"), Path("b.jpg"), Path("c.mp4")]
    assert find_sources(["notes.txt"]) == [Path("notes.txt")], "a file that is named is read"
    Path("[x].jpg").touch()
    assert find_sources(["[x].jpg"]) == [Path("[x].jpg")]


def test_a_number_is_a_camera_unless_a_file_is_called_so(folder):
    assert find_sources(["webcam:0", "12"]) == [0, 12]
    assert is_video(0)
    assert describe_source(0) == "webcam:0"
    Path("12").touch()
    assert find_sources(["12", "webcam:12"]) == [Path("12"), 12]


def test_an_address_is_a_stream():
    address = "rtsp://me:password@camera:554/live/1?key=secret"
    assert find_sources([address]) == [address]
    assert is_video(address)
    assert describe_source(address) == "rtsp://camera:554/live/1"
    assert name_source(address) == "camera-554-live-1"
    assert name_source("https://camera/a.mp4") == "camera-a"
    for password in ("p/w", "it's", "a@b"):
        assert describe_source(f"rtsp://me:{password}@camera/1") == "rtsp://camera/1"
    assert [name_source(source) for source in (Path("a/b.mp4"), 0)] == ["b", "webcam-0"]


@pytest.mark.parametrize("missing", ["none.jpg", "none.mp4", "empty", "*.gif", "webcam:x", "-1"])
def test_what_is_not_there_is_told(folder, missing):
    with pytest.raises(BucketRankError, match=r"There (is|are) no picture"):
        find_sources([missing])


def test_names_are_free(folder):
    assert free_name(folder, "a") == folder / "a.png"
    assert free_name(folder, "c", ".mp4") == folder / "c-2.mp4"
