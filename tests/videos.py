"""Small video files, and a network camera."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


@contextmanager
def network_camera(pictures: list[Path], rounds: int = 10_000) -> Iterator[str]:
    """The address of a stream of JPEG pictures, again and again, as cheap cameras send (MJPEG)."""

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            try:
                for picture in pictures * rounds:
                    jpeg = cv2.imencode(".jpg", cv2.imread(str(picture)))[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}"
                    self.wfile.write(f"{head}\r\n\r\n".encode() + jpeg + b"\r\n")
                    time.sleep(0.02)
            except ConnectionError:
                self.close_connection = True  # nobody looks any more

        def log_message(self, *words: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/video"
        server.shutdown()
        thread.join()
