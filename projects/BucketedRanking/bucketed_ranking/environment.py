"""What the package runs on: installed versions, devices, the folder of its configs.

Only the standard library is imported at the top: this module must work where much is missing.
"""

import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from .errors import BucketRankError


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None; nothing is imported."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(*distributions: str) -> dict[str, str | None]:
    """Python's version and those of bucketrank, torch and `distributions`; None: not installed."""
    names = ("bucketrank", "torch", *distributions)
    return {"python": platform.python_version(), **{n: installed_version(n) for n in names}}


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from; None where it is installed."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def choose_device(device: str | None) -> str:
    """The device to run on; None takes CUDA where there is one, else the CPU.

    Raises:
        BucketRankError: the device does not exist here.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BucketRankError(
            f"The device {device!r} cannot be used here: {str(error).splitlines()[0]} "
            "Leave --device out to take what there is."
        ) from error
    return device


def cpu_name() -> str:
    """What the processor is called by its maker."""
    cpuinfo = Path("/proc/cpuinfo")  # of Linux
    found = cpuinfo.is_file() and re.search(r"model name\s*: (.+)", cpuinfo.read_text())
    return found[1] if found else platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """What a torch device is called by its maker: the GPU's or the processor's name."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name()


def configs_root() -> Path:
    """The folder of configs: inside an installed package, else the checkout's own.

    Raises:
        BucketRankError: where neither is there.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parents[2] / "configs"):
        if candidate.is_dir():
            return candidate
    raise BucketRankError(
        f"The configs of bucketrank are in neither {package / 'configs'} nor "
        f"{package.parents[2] / 'configs'}; install bucketrank again (`make setup` in a checkout)."
    )
