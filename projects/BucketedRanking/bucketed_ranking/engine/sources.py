"""What a prediction reads, pictures, videos, cameras and streams, and free names for its files."""

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..data.images import PICTURES
from ..errors import BucketRankError

VIDEOS = {
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".ts",
}  # fmt: skip
"""Endings of the files that are taken for videos."""
_CAMERA = re.compile(r"(?:webcam:)?(\d{1,4})")
_STREAM = re.compile(r"(rtsps?|rtmps?|https?|udp|tcp)://.+", re.IGNORECASE)

Source = Path | int | str
"""The file of a picture or of a video, the number of a camera, or the address of a stream."""


def find_sources(words: Sequence[str | Path]) -> list[Source]:
    """The files and cameras that a user names.

    Args:
        words: a picture or a video; a folder, for those in it; a pattern such as "photos/**/*.jpg";
            a camera, "webcam:0", or "0" where no file is called so; the address of a stream, such
            as "rtsp://camera/video".

    Raises:
        BucketRankError: one of them is not there, or there is neither picture nor video.
    """
    found: list[Source] = []
    for word in words:
        path, camera = Path(word), _CAMERA.fullmatch(str(word))
        if _STREAM.fullmatch(str(word)):
            found.append(str(word))
        elif path.is_dir():
            found += _known(path.iterdir())
        elif path.is_file():
            found.append(path)
        elif camera:
            found.append(int(camera[1]))
        elif glob.has_magic(str(word)):
            found += _known(map(Path, glob.iglob(str(word), recursive=True)))
        else:
            raise BucketRankError(f"There is no picture, video or folder {word}.")
    if not found:
        raise BucketRankError(
            f"There are no pictures and no videos in {', '.join(map(str, words)) or 'nothing'}."
        )
    return found


def _known(paths: Iterable[Path]) -> list[Path]:
    kinds = PICTURES | VIDEOS
    return sorted(path for path in paths if path.suffix.lower() in kinds and path.is_file())


def is_video(source: Source) -> bool:
    """Whether a source has frames; a file of another ending is read as a picture."""
    return not isinstance(source, Path) or source.suffix.lower() in VIDEOS


def describe_source(source: Source) -> str:
    """What a user calls it, without a password."""
    if isinstance(source, Path):
        return str(source)
    if isinstance(source, int):
        return f"webcam:{source}"
    # Unlike in a text that holds addresses, a password may hold any character.
    return re.sub(r"^(\w+://)(?:[^?#]*@)?([^?#]*).*", r"\1\2", source)


def name_source(source: Source) -> str:
    """The stem of the file that a source's drawn video is written to."""
    if isinstance(source, Path):
        return source.stem
    name = re.sub(r"[^\w.]+", "-", describe_source(source).rpartition("://")[2]).strip("-")
    path = Path(name)
    return (path.stem if path.suffix.lower() in VIDEOS else name)[:100]


def free_name(folder: Path, stem: str, suffix: str = ".png") -> Path:
    """`folder`/`stem``suffix`, with a number appended to the stem if that file exists."""
    path, number = folder / f"{stem}{suffix}", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}{suffix}", number + 1
    return path
