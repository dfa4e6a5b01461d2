"""The two folders of this project in the user's home, and writing files so that none is half made."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Where generated data goes: ``$BUCKETRANK_HOME``, else ``~/.cache/bucketrank``."""
    home = os.environ.get("BUCKETRANK_HOME")
    return Path(home).expanduser().absolute() if home else Path.home() / ".cache" / "bucketrank"


def config_folder() -> Path:
    """Where the registry lies: ``$BUCKETRANK_HOME``, else ``~/.config/bucketrank``."""
    home = os.environ.get("BUCKETRANK_HOME")
    return Path(home).expanduser().absolute() if home else Path.home() / ".config" / "bucketrank"


def write_atomically(path: Path, text: str) -> None:
    """Writes a file beside its place and renames it: readers see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
