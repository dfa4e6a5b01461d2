"""Detectron2: importing it, saying that it is missing, and installing it.

Detectron2 itself is on no package registry. Its Python files are, in the wheel of another project
(`sal-detectron2`): those of the official repository at commit a59f0563, but for three places that
tools/compare_detectron2.sh shows. Nothing here needs Detectron2's compiled part, so that these
files, without the wheel's binary, are what is installed unless the user asks for another source.

Only the standard library is imported at the top: this module must work where much is missing.
"""

import shutil
import sys
import sysconfig
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from .environment import installed_version
from .errors import BucketRankError
from .package_registry import download_wheel, run_pip, run_python

REGISTRY_PACKAGE = "sal-detectron2==0.7.2"
REGISTRY_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
REGISTRY_COMMIT = "a59f0563"

OFFICIAL_REPOSITORY = "git+https://github.com/facebookresearch/detectron2.git"
OFFICIAL_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"

_FAILED = "detectron2 could not be installed"
GET_DETECTRON2 = "`bucketrank doctor --install-detectron2` installs it"

# Packs the registry's files as an ordinary distribution; its dependencies are those of the
# official setup.py.
_PROJECT = f"""\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "0.6+{REGISTRY_COMMIT}.python"
description = "Detectron2's Python files at commit {REGISTRY_COMMIT}, without its compiled part"
readme = {{ text = "From {REGISTRY_PACKAGE}, unchanged.", content-type = "text/plain" }}
license = "Apache-2.0"
license-files = ["LICENSE"]
requires-python = ">=3.7"
dependencies = [
    "Pillow>=7.1", "matplotlib", "pycocotools>=2.0.2", "termcolor>=1.1", "yacs>=0.1.8", "tabulate",
    "cloudpickle", "tqdm>4.29.0", "tensorboard", "fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7,<0.1.10",
    "omegaconf>=2.1,<2.4", "hydra-core>=1.1", "black", "packaging",
]
urls = {{ Repository = "https://github.com/facebookresearch/detectron2" }}

[tool.setuptools.packages.find]
namespaces = false

[tool.setuptools.package-data]
detectron2 = ["**/*"]
"""


def import_detectron2() -> bool:
    """Whether Detectron2 is installed and imports; warns where it is installed and does not."""
    if find_spec("detectron2") is None:
        return False
    with warnings.catch_warnings():
        # Detectron2's own, at its import, on each run: nothing that our users can act on.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")
        try:
            import_module("detectron2.modeling")
        except Exception as error:  # built for another torch, it may raise anything
            reason = f"{type(error).__name__}: {error}"
        else:
            return True
    warnings.warn(
        f"detectron2 is installed but does not import ({reason}), so there are no detectors; "
        "the losses work. `bucketrank doctor` says how to mend it.",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def require_detectron2(what: str) -> None:
    """Import Detectron2, or say that `what` ("Training RetinaNet") needs it, and how to get it.

    Raises:
        BucketRankError: where detectron2 is not installed, or does not import.
    """
    if not import_detectron2():
        state = "installed but does not import" if find_spec("detectron2") else "not installed"
        raise BucketRankError(
            f"{what} needs detectron2, which is {state}; {GET_DETECTRON2}, and `bucketrank doctor` "
            "shows everything that is missing."
        )


def install_detectron2(source: str | None, report: Callable[[str], None]) -> None:
    """Install Detectron2, and what training needs beside it, into the running environment.

    Args:
        source: None keeps a Detectron2 that imports and else means "registry", the Python files
            from the package registry; "official" builds the pinned commit of the official
            repository; anything else is a folder, a wheel or an address, as pip takes them.
        report: is told each step, in a sentence.

    Raises:
        BucketRankError: a tool is missing, or pip fails; no other source is tried then.
    """
    if find_spec("pip") is None:
        raise BucketRankError(
            f"pip is missing in the environment of {sys.executable}, and installs detectron2; "
            "`python -m ensurepip` adds it (with uv: `uv pip install pip`)."
        )
    if source not in (None, "registry") and not source.endswith(".whl"):
        _require_build_tools(source)
        _pip("install", "ninja", "setuptools<81", "wheel")
    if (ours := installed_version("bucketrank")) is not None:
        report("Installing what training needs beside detectron2 ...")
        _pip("install", f"bucketrank[detectors]=={ours}")
    if source is None and import_detectron2():
        report(f"detectron2 {installed_version('detectron2')} is installed and imports; kept.")
        return
    source = source or "registry"
    with tempfile.TemporaryDirectory(prefix="detectron2-") as folder:
        if source == "registry":
            report(f"Taking detectron2's Python files from {REGISTRY_PACKAGE} ...")
            wheel = _wheel_from_registry(Path(folder))
        else:
            report(f"Taking detectron2 from {source} ...")
            wheel = _wheel_from(source, Path(folder))
        # By name, so that pip lists a version and not the path of a file that is gone; and from
        # the folder alone, so that nobody else's package of this name can take its place.
        here = ["--no-index", "--find-links", str(wheel.parent)]
        pinned = f"detectron2=={wheel.name.split('-')[1]}"
        _pip("install", "--force-reinstall", "--no-deps", *here, pinned)
        _pip("install", pinned)  # what it depends on
    # In a process of its own: this one may have imported another detectron2, or none.
    failed = f"detectron2 was installed from {source}, but does not import"
    run_python("-c", "import detectron2.modeling", failed=failed)
    report(f"detectron2 {installed_version('detectron2')} is installed.")


def _wheel_from_registry(folder: Path) -> Path:
    """Download the registry's wheel, checked by hash, and pack its Python files anew."""
    # Its tag says Python 3.10, because of the binary; the Python files run on every version.
    downloaded = download_wheel(
        REGISTRY_PACKAGE, REGISTRY_SHA256, folder, "--python-version=3.10", failed=_FAILED
    )
    project = folder / "project"
    with zipfile.ZipFile(downloaded) as archive:
        for name in archive.namelist():
            if name.startswith("detectron2/") and not name.endswith(".so"):
                archive.extract(name, project)
            elif name.endswith(".dist-info/LICENSE"):
                (project / "LICENSE").write_bytes(archive.read(name))
    (project / "pyproject.toml").write_text(_PROJECT)
    return _wheel_from(str(project), folder / "built")


def _wheel_from(source: str, folder: Path) -> Path:
    """Build (or fetch) the one wheel of a source, so that a failure leaves what is installed."""
    if source == "official":
        source = f"{OFFICIAL_REPOSITORY}@{OFFICIAL_COMMIT}"
    elif Path(source).exists():
        source = str(Path(source).resolve())  # a bare name would be taken for a package's
    # Without pip's cache: it would hand out what was built for another torch.
    how = ["--no-cache-dir", "--no-build-isolation", "--no-deps"]
    _pip("wheel", *how, "--wheel-dir", str(folder), source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _require_build_tools(source: str) -> None:
    """Say what is missing, before minutes are spent, to fetch and compile `source`."""
    instead = "or leave the source out: bucketrank needs nothing of detectron2's compiled part."
    if (source == "official" or source.startswith("git+")) and shutil.which("git") is None:
        raise BucketRankError(f"git is missing, and fetches {source}: install it, {instead}")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise BucketRankError(
            f"A C++ compiler is missing, and detectron2 is compiled from {source}: install one "
            f"(Debian, Ubuntu: apt install g++), {instead}"
        )
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        raise BucketRankError(
            f"Python.h is missing, and detectron2 is compiled from {source}: install Python's "
            f"headers (Debian, Ubuntu: apt install python3-dev), {instead}"
        )


def _pip(*arguments: str) -> None:
    run_pip(*arguments, failed=_FAILED)
