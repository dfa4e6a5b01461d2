"""The embedded data set of textured shapes in COCO format, generated on first use.

The version stands in the folder's name and in the JSON. It changes whenever a picture or an
annotation does, so numbers measured on one version are never mistaken for those of another.
``annotations`` writes the files, ``scene`` composes a picture, ``drawing`` paints it, and
``classes`` holds what the classes look like.
"""

import logging
import os
import shutil
from pathlib import Path

from filelock import FileLock

from ...errors import BucketRankError
from ..files import user_folder

logger = logging.getLogger(__name__)

VERSION = 2
SEED = 20240
SIZES = {"train": 800, "val": 200}
"""Number of pictures of each split."""


def shapes_folder() -> Path:
    """The folder of the data set, whether or not it has been made."""
    return user_folder("cache") / f"shapes-v{VERSION}"


def annotations_file(folder: Path, split: str) -> Path:
    """The JSON of a split (``train`` or ``val``) in a data set folder."""
    return folder / "annotations" / f"instances_{split}.json"


def ensure_shapes(folder: Path | None = None, sizes: dict[str, int] = SIZES) -> Path:
    """Makes the data set if it is not there yet, by default in ``shapes_folder()``; returns where.

    The folder holds ``annotations/instances_{train,val}.json`` and the pictures in ``train/`` and
    ``val/``. Picture i of a split does not depend on how many there are. The folder is made beside
    its place and renamed at the end, so it is either complete or absent; of several processes one
    makes it and the others wait.

    Raises:
        BucketRankError: the folder cannot be written.
    """
    folder = folder or shapes_folder()
    if _is_complete(folder, sizes):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not _is_complete(folder, sizes):
                _make(folder, sizes)
    except OSError as error:
        raise BucketRankError(
            f"The shapes data set cannot be written to {folder}: {error}. Free some space or set "
            "BUCKETRANK_HOME to a folder that can be written."
        ) from error
    return folder


def _is_complete(folder: Path, sizes: dict[str, int]) -> bool:
    return all(
        annotations_file(folder, split).is_file()
        and (folder / split).is_dir()
        and len(os.listdir(folder / split)) == size
        for split, size in sizes.items()
    )


def _make(folder: Path, sizes: dict[str, int]) -> None:
    """Replaces what is there, which is damaged, and what an interrupted process left."""
    # Here, so that a list of data sets needs no OpenCV.
    from .annotations import write_split

    # A warning, because that is what a user sees who has set up no logging and now has to wait.
    logger.warning("Making the shapes data set in %s (once; half a minute)", folder)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for split, size in sizes.items():
            write_split(unfinished, split, size)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
