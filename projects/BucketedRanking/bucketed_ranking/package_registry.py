"""Running pip, and taking a wheel from the package registry by version and hash.

Only the standard library is imported: this module must work where much is missing.
"""

import subprocess
import sys
from pathlib import Path

from .errors import BucketRankError


def download_wheel(requirement: str, sha256: str, folder: Path, *options: str, failed: str) -> Path:
    """Download the wheel of `NAME==VERSION` into an empty folder, refused unless it has this hash.

    Args:
        options: further options of `pip download`.
        failed: see :func:`run_pip`.

    Raises:
        BucketRankError: pip is missing or cannot get it, or its hash is another.
    """
    file = folder / "requirement.txt"
    file.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    how = ["--no-deps", "--only-binary=:all:", *options, "--require-hashes", "-r", str(file)]
    run_pip("download", *how, "-d", str(folder), failed=failed)
    (wheel,) = folder.glob("*.whl")
    return wheel


def run_pip(*arguments: str, failed: str) -> None:
    """Run this environment's pip; raise BucketRankError, with `failed` first, if it fails."""
    pip = ["-m", "pip", "--disable-pip-version-check", "--no-input"]
    run_python(*pip, *arguments, failed=f"{failed}: `pip {' '.join(arguments)}` failed")


def run_python(*arguments: str, failed: str) -> None:
    """Run this environment's Python; raise `failed` with its error lines, else its last ones."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if "error:" in line.lower() or line.startswith("fatal")]
        raise BucketRankError(f"{failed}: {' '.join(errors[:3] or lines[-3:])}")
