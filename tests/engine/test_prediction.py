"""Pictures, videos and a camera in; drawings and JSON out, whatever happens on the way."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bucketed_ranking import BucketRankError, Detector, Progress, Training
from bucketed_ranking.engine import prediction, video
from tests.coco_blobs import write_blobs
from tests.videos import fps_of, frames_of, network_camera, write_video


@pytest.fixture(scope="module")
def detector(mask_run: Training) -> Detector:
    """It shows about half of what it finds."""
    detector = Detector(mask_run.folder, weights="last", device="cpu", threshold=0.0)
    folder = mask_run.folder.parent / "pictures"
    picture = write_blobs(folder, 1, seed=9).parent / "images" / "001.jpg"
    detector.threshold = float(np.median(detector(picture).scores))
    return detector


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pictures and two videos of seven frames."""
    folder = tmp_path_factory.mktemp("media")
    pictures = sorted((write_blobs(folder / "made", 2, seed=9).parent / "images").iterdir())
    for name in ("clip.mp4", "old.avi"):
        write_video(folder / name, pictures, 7)
    for path in pictures:
        path.rename(folder / path.name)
    shutil.rmtree(folder / "made")
    return folder


def read(folder: Path) -> list[dict]:
    return json.loads((folder / "predictions.json").read_text())


def test_pictures_and_videos_are_drawn_and_written(detector, media, tmp_path):
    told: list[Progress] = []
    found = detector.predict(media, tmp_path / "out", on_progress=told.append)
    assert (found.pictures, found.frames, found.stopped) == (2, 14, False)
    assert not found.unreadable | found.cut_off
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["001.png", "002.png", "clip.mp4", "old.mp4", "predictions.json"]
    drawn = frames_of(tmp_path / "out" / "clip.mp4")
    assert len(drawn) == 7
    assert fps_of(tmp_path / "out" / "clip.mp4") == 8.0
    assert drawn[0].shape == (480, 576, 3), "enlarged, as pictures are"
    written = read(tmp_path / "out")
    assert len(written) == found.objects == sum(each.objects for each in told) > 0
    frames = [each for each in written if each["file_name"].endswith("clip.mp4")]
    assert {each["frame"] for each in frames} == set(range(7))
    assert all(each["seconds"] == each["frame"] / 8 for each in frames)
    assert {each["image_id"] for each in frames} == set(range(3, 10))
    assert all(each["segmentation"]["size"] == [80, 96] for each in frames)
    assert all(each["score"] >= detector.threshold for each in written)
    pictures = [each for each in written if each["file_name"].endswith("g")]
    assert {each["image_id"] for each in pictures} == {1, 2}
    assert all("frame" not in each for each in pictures)
    assert [(each.done, each.total) for each in told[:3]] == [(1, 2), (2, 2), (1, 7)]
    assert all(each.per_second > 0 for each in told)


def test_the_frames_of_a_video_are_what_a_picture_of_them_is(detector, media, tmp_path):
    detector.predict(media / "old.avi", tmp_path / "one")
    detector.predict(media / "old.avi", tmp_path / "three", batch_size=3)
    frames = detector([frame[:, :, ::-1] for frame in frames_of(media / "old.avi")])
    for folder in ("one", "three"):
        written = read(tmp_path / folder)
        assert [each["frame"] for each in written] == [
            index for index, frame in enumerate(frames) for _ in frame
        ]
        scores = np.concatenate([frame.scores for frame in frames])
        np.testing.assert_allclose([each["score"] for each in written], scores, atol=1e-5)


def test_broken_videos_give_what_can_be_read_and_a_count(detector, media, tmp_path):
    whole = (media / "old.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.mp4").write_bytes((media / "clip.mp4").read_bytes()[:2000])
    found = detector.predict([tmp_path], tmp_path / "out")
    ((name, (frames, total)),) = found.cut_off.items()
    assert name == str(tmp_path / "cut.avi")
    assert 0 < frames == found.frames < total == 7
    assert len(frames_of(tmp_path / "out" / "cut.mp4")) == frames
    assert list(found.unreadable) == [str(tmp_path / "cut.mp4")]


def test_nothing_is_left_where_nothing_can_be_read(detector, media, tmp_path):
    (tmp_path / "cut.mp4").write_bytes((media / "clip.mp4").read_bytes()[:2000])
    out = tmp_path / "out"
    with pytest.raises(BucketRankError, match=r"Nothing could be read, such as .*cut\.mp4: it is"):
        detector.predict(tmp_path / "cut.mp4", out)
    assert not list(out.iterdir())
    detector.predict(media / "001.jpg", out)
    with pytest.raises(BucketRankError, match="There are predictions in"):
        detector.predict(media / "001.jpg", out)


def test_a_video_that_is_stopped_can_be_played(detector, media, tmp_path):
    told: list[Progress] = []
    found = detector.predict(
        [media / "clip.mp4", media / "old.avi"], tmp_path / "out",
        on_progress=told.append, stop=lambda: len(told) == 3, batch_size=2,
    )  # fmt: skip
    assert found.stopped
    assert found.frames == len(frames_of(tmp_path / "out" / "clip.mp4")) == 3
    assert not (tmp_path / "out" / "old.mp4").exists()
    assert max(each["frame"] for each in read(tmp_path / "out")) == 2


def test_a_video_that_an_error_ends_can_be_played(detector, media, tmp_path, monkeypatch):
    looked, detect = [], prediction.detect_batch

    def interrupted(*arguments, **how):
        looked.append(arguments)
        if len(looked) == 4:
            raise KeyboardInterrupt
        return detect(*arguments, **how)

    monkeypatch.setattr(prediction, "detect_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        detector.predict(media / "clip.mp4", tmp_path / "out")
    assert len(frames_of(tmp_path / "out" / "clip.mp4")) == 3
    assert max(each["frame"] for each in read(tmp_path / "out")) == 2


def test_a_camera_goes_on_until_it_is_stopped(detector, media, tmp_path, monkeypatch):
    """Here a video file plays the camera."""
    opened = video.cv2.VideoCapture

    def camera(source):
        return opened(str(media / "clip.mp4") if source == 0 else source)

    monkeypatch.setattr(video.cv2, "VideoCapture", camera)
    told: list[Progress] = []
    found = detector.predict(
        "webcam:0", tmp_path / "out", on_progress=told.append, stop=lambda: len(told) == 3
    )
    assert (found.frames, found.stopped) == (3, False), "a camera is not cut off by a stop"
    assert {each.total for each in told} == {None}
    written = read(tmp_path / "out")
    assert {each["file_name"] for each in written} == {"webcam:0"}
    last = max(each["seconds"] for each in written)
    assert last > 0
    drawn = frames_of(tmp_path / "out" / "webcam-0.mp4")
    assert len(drawn) == pytest.approx(8 * last + 1, abs=1), "it lasts as long as it was filmed"


@pytest.mark.timeout(120)
def test_a_stream_of_a_network_camera(detector, media, tmp_path):
    told: list[Progress] = []
    with network_camera([media / "001.jpg", media / "002.jpg"]) as address:
        secret = address.replace("127.0.0.1", "me:password@127.0.0.1") + "?key=secret"
        found = detector.predict(
            secret, tmp_path / "out", on_progress=told.append, stop=lambda: len(told) == 4
        )
    assert (found.frames, found.stopped) == (4, False)
    assert {each.total for each in told} == {None}
    assert {each["file_name"] for each in read(tmp_path / "out")} == {address}
    (drawn,) = (tmp_path / "out").glob("*.mp4")
    assert drawn.name == f"127.0.0.1-{address.split(':')[2].replace('/', '-')}.mp4"
    assert len(frames_of(drawn)) >= 4


@pytest.mark.timeout(120)
def test_a_stream_that_ends_by_itself_is_told(detector, media, tmp_path):
    with network_camera([media / "001.jpg", media / "002.jpg"], rounds=3) as address:
        found = detector.predict([address, address], tmp_path / "out")
    assert found.frames == 6, "what is named twice is looked at once"
    assert found.cut_off == {address: (6, None)}
    assert not found.unreadable


def test_a_stream_that_is_not_there_is_told_without_its_password(detector, tmp_path):
    with pytest.raises(BucketRankError, match=r"^http://127.0.0.1:9/x does not answer, or gives"):
        detector.predict("http://me:password@127.0.0.1:9/x?key=1", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_camera_that_is_not_there_is_told_before_anything_is_written(detector, media, tmp_path):
    with pytest.raises(BucketRankError, match="There is no camera webcam:97"):
        detector.predict([media / "001.jpg", "webcam:97"], tmp_path / "out")
    assert not list(tmp_path.iterdir())
