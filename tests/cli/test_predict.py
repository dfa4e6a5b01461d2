"""`bucketrank predict` on videos and cameras; tests/cli/test_train.py has it on pictures."""

import json
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from bucketed_ranking import Training
from bucketed_ranking.engine.video import VideoWriter
from bucketrank_cli.main import app
from tests.coco_blobs import write_blobs
from tests.videos import frames_of, write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    picture = write_blobs(folder / "made", 1, seed=9).parent / "images" / "001.jpg"
    picture.rename(folder / "still.jpg")
    return write_video(folder / "clip.avi", [folder / "still.jpg"], 6)


def predict(run: Training, *arguments: str | Path) -> Result:
    words = ["predict", run.folder, *arguments, "--device", "cpu", "--score-threshold", "0"]
    return CliRunner().invoke(app, [str(word) for word in words])


def test_videos_beside_pictures_with_their_speed(mask_run, clip, tmp_path):
    cut = tmp_path / "cut.avi"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    pattern = clip.parent / "*"
    result = predict(mask_run, pattern, cut, "--out", tmp_path / "out", "--batch-size", "2")
    assert result.exit_code == 0, result.output
    assert "clip.avi: 6 of 6 frames, " in result.output
    assert "frames a second" in result.output
    assert f"{clip.parent / 'still.jpg'}: " in result.output
    frames = len(frames_of(tmp_path / "out" / "cut.mp4"))
    assert f"{cut} is cut off or damaged: {frames} of its 6 frames could be read" in result.output
    assert f"1 picture and {6 + frames} video frames with " in result.output
    assert len(frames_of(tmp_path / "out" / "clip.mp4")) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["webcam:97"], "There is no camera webcam:97, or another program uses it."),
        (["none.mp4"], "There is no picture, video or folder none.mp4."),
        (["*.mkv"], "There are no pictures and no videos in *.mkv."),
        (["empty.mp4"], "Nothing could be read, such as empty.mp4: it is no video"),
        (["empty.mp4", "--batch-size", "0"], "--batch-size is 0; it must be 1 or more."),
    ],
)
def test_what_is_not_there_is_one_sentence_and_exit_code_2(
    mask_run, words, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("empty.mp4").touch()
    result = predict(mask_run, *words, "--out", "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_video_that_is_being_written(
    mask_run, clip, tmp_path, monkeypatch, number
):
    write = VideoWriter.write

    def write_and_signal(self, picture, seconds):
        write(self, picture, seconds)
        if self.frames == 3:
            signal.raise_signal(number)

    monkeypatch.setattr(VideoWriter, "write", write_and_signal)
    result = predict(mask_run, clip, clip.parent / "still.jpg", "--out", tmp_path)
    assert result.exit_code == 130, result.output
    assert "Stopped: 3 video frames with " in result.output
    assert len(frames_of(tmp_path / "clip.mp4")) == 3
    frames = {each["frame"] for each in json.loads((tmp_path / "predictions.json").read_text())}
    assert frames == {0, 1, 2}
    assert not (tmp_path / "still.png").exists()
