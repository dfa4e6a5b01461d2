"""Folders of this project in the user's home; reading and writing files safely."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from platformdirs import PlatformDirs

from ..errors import BucketRankError


def user_folder(kind: Literal["cache", "config"]) -> Path:
    """``$BUCKETRANK_HOME``, else ``bucketrank`` in the user's folder for generated data or the
    registry: the platform's own, unless there is only one where older versions put it."""
    if home := os.environ.get("BUCKETRANK_HOME"):
        return Path(home).expanduser().absolute()
    standard: Path = getattr(PlatformDirs("bucketrank", appauthor=False), f"user_{kind}_path")
    older = Path.home() / f".{kind}" / "bucketrank"
    return older if older.is_dir() and not standard.is_dir() else standard


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file in one step; see :func:`atomic_file`."""
    with atomic_file(path) as stream:
        stream.write(text.encode())


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes its place when the context ends well: whatever happens,
    readers see the old one or the new one, whole, and after a power cut too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_coco(path: Path) -> dict[str, Any]:
    """The content of a COCO-format JSON, which has lists of images, annotations and categories.

    Raises:
        BucketRankError: if the file cannot be read, is not JSON, or lacks one of them.
    """
    if path.is_dir():
        raise BucketRankError(f"{path} is a folder, not a COCO JSON: only training can use it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BucketRankError(f"There is no JSON at {path}.") from error
    except OSError as error:
        raise BucketRankError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise BucketRankError(f"{path} is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise BucketRankError(f"{path} is not COCO JSON: it is nested too deeply.") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise BucketRankError(
                f"{path} is not COCO detection JSON: it has no list '{key}' at the top level."
            )
    return content
