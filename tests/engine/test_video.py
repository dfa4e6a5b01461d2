"""Frames in and out: times, sizes, and files that cannot be read or written."""

import numpy as np
import pytest
from PIL import Image

from bucketed_ranking.engine import video
from bucketed_ranking.engine.video import UnreadableVideoError, VideoReader, VideoWriter
from bucketed_ranking.errors import BucketRankError
from tests.videos import fps_of, frames_of

RED, BLUE = ((200, 20, 20), (20, 20, 200))


def plain(color, size=(64, 48)) -> Image.Image:
    return Image.new("RGB", size, color)


def test_what_is_written_is_read_again_in_rgb(tmp_path):
    path = tmp_path / "x.mp4"
    with VideoWriter(path, 4.0) as writer:
        for index, color in enumerate((RED, BLUE, RED)):
            writer.write(plain(color), index / 4)
    with VideoReader(path) as reader:
        assert (reader.fps, reader.total, reader.is_live) == (4.0, 3, False)
        seconds, pictures = zip(*reader, strict=True)
    assert seconds == (0.0, 0.25, 0.5)
    for picture, color in zip(pictures, (RED, BLUE, RED), strict=True):
        assert np.abs(np.asarray(picture).mean(axis=(0, 1)) - color).max() < 12


def test_a_video_is_as_long_as_what_it_shows(tmp_path):
    """A camera's frames come when the detector is ready: too few, or too many."""
    path = tmp_path / "x.mp4"
    with VideoWriter(path, 10.0) as writer:
        for seconds, color in ((0.0, RED), (0.02, BLUE), (0.5, BLUE), (0.9, RED)):
            writer.write(plain(color), seconds)
    reddest = [frame.mean(axis=(0, 1)).argmax() == 2 for frame in frames_of(path)]
    assert reddest == [True] + 5 * [False] + 4 * [True]


def test_frames_take_the_size_of_the_first(tmp_path):
    path = tmp_path / "x.mp4"
    with VideoWriter(path, 10.0) as writer:
        writer.write(plain(RED, (65, 49)), 0.0)
        writer.write(plain(RED, (200, 100)), 0.1)
    assert [frame.shape for frame in frames_of(path)] == 2 * [(48, 64, 3)], "even sides"


def test_a_video_without_frames_leaves_no_file(tmp_path):
    with VideoWriter(tmp_path / "x.mp4", 10.0):
        pass
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_told(tmp_path, capfd):
    with (
        pytest.raises(BucketRankError, match="OpenCV cannot write the video"),
        VideoWriter(tmp_path / "none" / "x.mp4", 10.0) as writer,
    ):
        writer.write(plain(RED), 0.0)
    writer = VideoWriter(tmp_path / "x.mp4", 10.0)
    writer.write(plain(RED), 0.0)
    writer.close()
    writer.path.write_bytes(b"")  # as a full disk leaves it
    with pytest.raises(BucketRankError, match="could not be written to its end"):
        writer.check()
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_read_is_told_and_opencv_is_silent(tmp_path, capfd):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(UnreadableVideoError, match="no video that OpenCV can read"):
        VideoReader(tmp_path / "x.mp4")
    with pytest.raises(BucketRankError, match=r"There is no camera webcam:97"):
        VideoReader(97)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("fps", [0.0, float("nan"), 90_000.0])
def test_where_the_speed_is_not_known_it_is_the_usual_one(tmp_path, monkeypatch, fps):
    class Capture:
        def isOpened(self):  # noqa: N802
            return True

        def get(self, key):
            return {video.cv2.CAP_PROP_FPS: fps}.get(key, -1.0)

    monkeypatch.setattr(video.cv2, "VideoCapture", lambda source: Capture())
    reader = VideoReader(tmp_path / "x.mp4")
    assert (reader.fps, reader.total) == (30.0, None)


def test_the_speed_of_a_video_is_kept(tmp_path):
    with VideoWriter(tmp_path / "x.mp4", 29.97) as writer:
        for index in range(5):
            writer.write(plain(RED), index / 29.97)
    assert fps_of(tmp_path / "x.mp4") == pytest.approx(29.97, abs=0.01)
    assert len(frames_of(tmp_path / "x.mp4")) == 5
