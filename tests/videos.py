"""Small video files."""

from pathlib import Path

import cv2
import numpy as np


def write_video(path: Path, pictures: list[Path], frames: int, fps: float = 8.0) -> Path:
    """A video of 96 x 80 pixels that shows the pictures one after another, moving."""
    codec = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), codec, fps, (96, 80))
    for index in range(frames):
        frame = cv2.resize(cv2.imread(str(pictures[index % len(pictures)])), (96, 80))
        writer.write(np.roll(frame, 2 * index, axis=1))
    writer.release()
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    """The frames of a video, uint8 [H, W, 3] BGR."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def fps_of(path: Path) -> float:
    return cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS)
