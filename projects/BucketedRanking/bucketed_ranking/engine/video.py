"""Frames of video files, cameras and streams, and videos to write, by OpenCV."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What FFmpeg says on the terminal about a broken file is said here in a sentence.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np
from PIL import Image

from ..errors import BucketRankError
from .sources import Source, describe_source

_USUAL_FPS = 30.0
_FPS_RANGE = (1.0, 240.0)  # outside of it a file or camera does not know
# Every OpenCV writes it, at a few hundredths of a second a frame; VP9 took a second.
_CODEC = "mp4v"


@contextmanager
def _quiet() -> Iterator[None]:
    """OpenCV says nothing on the terminal while the context lasts."""
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


class UnreadableVideoError(ValueError):
    """Says why a video file cannot be read."""


class VideoReader:
    """The frames of a video file, a camera or a stream, in a `with` statement.

    Attributes:
        is_live: it comes as it happens, and has no end of its own.

    Raises:
        BucketRankError: there is no such camera or stream.
        UnreadableVideoError: the file is no video, or is damaged from its first frame on.
    """

    def __init__(self, source: Source):
        with _quiet():
            self._capture = cv2.VideoCapture(str(source) if isinstance(source, Path) else source)
        if not self._capture.isOpened():
            self._capture.release()
            if isinstance(source, Path):
                raise UnreadableVideoError("it is no video that OpenCV can read, or is cut off")
            name = describe_source(source)
            raise BucketRankError(
                f"There is no camera {name}, or another program uses it."
                if isinstance(source, int)
                else f"{name} does not answer, or gives no video that OpenCV can read."
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if _FPS_RANGE[0] <= fps <= _FPS_RANGE[1] else _USUAL_FPS
        """Frames per second; the usual 30 where it is not known."""
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        known = not isinstance(source, int) and math.isfinite(count) and count > 0
        self.total = int(count) if known else None
        """How many frames the file says that it has; None: not known."""
        self.is_live = not known and not isinstance(source, Path)
        if self.is_live:
            # The newest frame, not one of before; of a stream FFmpeg gives all there are.
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[tuple[float, Image.Image]]:
        """Each frame, RGB, and when it is, in seconds since the first."""
        begun, index = math.nan, 0
        while True:
            with _quiet():
                there, frame = self._capture.read()
            if not there:
                return
            begun = begun if index else time.monotonic()
            seconds = time.monotonic() - begun if self.is_live else index / self.fps
            yield seconds, Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            index += 1


class VideoWriter:
    """An MP4 file (MPEG-4), in a `with` statement; however that ends, the file can be played.

    Its size is that of the first frame.
    """

    def __init__(self, path: Path, fps: float):
        self.path, self.fps, self.frames = path, fps, 0
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, picture: Image.Image, seconds: float) -> None:
        """Append a frame, seen so many seconds after the first.

        It is repeated, or left out, so that the video is as long as what it shows.

        Raises:
            BucketRankError: the file cannot be written.
        """
        if self._writer is None:
            self._size = picture.size
            with _quiet():
                codec = cv2.VideoWriter.fourcc(*_CODEC)
                self._writer = cv2.VideoWriter(str(self.path), codec, self.fps, self._size)
            if not self._writer.isOpened():
                raise BucketRankError(f"OpenCV cannot write the video {self.path}.")
        frame = np.asarray(picture.convert("RGB").resize(self._size))
        while self.frames <= round(seconds * self.fps):
            self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            self.frames += 1

    def __exit__(self, kind: object, *error: object) -> None:
        self.close()
        if kind is None:
            self.check()

    def close(self) -> None:
        """End the file; nothing more can be written."""
        if self._writer is not None:
            self._writer.release()

    def check(self) -> None:
        """BucketRankError unless the file that was closed can be read; OpenCV tells of no fault."""
        with _quiet():
            whole = not self.frames or cv2.VideoCapture(str(self.path)).isOpened()
        if not whole:
            raise BucketRankError(
                f"The video {self.path} could not be written to its end; is the disk full?"
            )
