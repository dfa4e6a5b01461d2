"""The files of a prediction: pictures to read, and free names for those to write."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import BucketRankError

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def list_images(paths: Sequence[Path]) -> list[Path]:
    """Files, and the pictures in folders; BucketRankError if one is missing, or there is none."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(f for f in path.iterdir() if f.suffix.lower() in _PICTURES)
        elif path.is_file():
            files.append(path)
        else:
            raise BucketRankError(f"There is no picture or folder {path}.")
    if not files:
        raise BucketRankError(f"There are no pictures in {', '.join(map(str, paths))}.")
    return files


def free_name(folder: Path, stem: str) -> Path:
    """`folder`/`stem`.png, with a number appended if that file exists."""
    path, number = folder / f"{stem}.png", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.png", number + 1
    return path
