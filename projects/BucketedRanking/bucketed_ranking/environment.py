"""What is around the package: its version and configs, Detectron2, devices, the doctor's report.

Only the standard library is imported at the top: this module must work where much is missing.
"""

import os
import platform
import re
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import BucketRankError

if TYPE_CHECKING:
    from .data.registry import DatasetEntry

# Read by tools/setup.sh too: keep each on one line.
DETECTRON2_REPOSITORY = "git+https://github.com/facebookresearch/detectron2.git"
DETECTRON2_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"

GET_EVERYTHING = "run `make setup` in a checkout of bucketrank"
GET_DETECTRON2 = (
    f"{GET_EVERYTHING}, or, with torch, ninja and setuptools<81 installed, "
    f"`pip install --no-build-isolation {DETECTRON2_REPOSITORY}@{DETECTRON2_COMMIT}`"
)


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None; nothing is imported."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def package_version() -> str:
    """bucketrank's own version; `0+unknown` where its sources are used without installing them."""
    return installed_version("bucketrank") or "0+unknown"


def installed_versions(*distributions: str) -> dict[str, str | None]:
    """Python's version and those of bucketrank, torch and `distributions`; None: not installed."""
    names = ("bucketrank", "torch", *distributions)
    return {"python": platform.python_version(), **{n: installed_version(n) for n in names}}


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from; None where it is installed."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


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
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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
    """Import Detectron2, or say what is lacking and how to get it, where `what` needs it.

    Args:
        what: what was asked for, as the beginning of a sentence: "Training RetinaNet".

    Raises:
        BucketRankError: where detectron2 is not installed, or does not import.
    """
    if find_spec("detectron2") is None:
        raise BucketRankError(
            f"{what} needs detectron2, which is not installed; {GET_DETECTRON2}. "
            "`bucketrank doctor` shows everything that is missing."
        )
    if not import_detectron2():
        raise BucketRankError(
            f"{what} needs detectron2, which is installed but does not import; install it again: "
            f"{GET_DETECTRON2}."
        )


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    `missing` and `broken` stand for what training needs, `absent` for what it can do without.
    """

    group: Literal["software", "compiled", "devices", "data"]
    name: str
    state: Literal["ok", "missing", "broken", "absent"]
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    findings: tuple[Finding, ...]

    @property
    def lacking(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.state in ("missing", "broken"))

    @property
    def ready(self) -> bool:
        """Whether training is possible."""
        return not self.lacking

    def as_dict(self) -> dict[str, Any]:
        return {"ready": self.ready, "findings": [asdict(f) for f in self.findings]}


def collect_report() -> Report:
    """Look at everything that training needs, and try what is compiled."""
    findings = [_python(), *map(_software, _needed())]
    torch_works = _compiled("torch", "torch arithmetic", _try_torch)
    findings.append(torch_works)
    if torch_works.state == "ok":
        findings += [_compiled("torchvision", "torchvision operators", _try_torchvision)]
        findings += [_compiled("detectron2", "detectron2 operators", _try_detectron2)]
        findings += [_compiled("pycocotools", "pycocotools masks", _try_pycocotools)]
        findings += _devices()
    findings += [_configs(), *_data_sets()]
    return Report(tuple(findings))


def _needed() -> list[str]:
    """The distributions that training imports: the declared ones, and detectron2."""
    declared = metadata.requires("bucketrank") if installed_version("bucketrank") else []
    names = [requirement for requirement in declared or [] if "extra ==" not in requirement]
    return ["bucketrank", *(re.split(r"[^\w.-]", name)[0] for name in names), "detectron2"]


def _python() -> Finding:
    return Finding("software", "python", "ok", f"{platform.python_version()} ({platform.system()})")


def _software(distribution: str) -> Finding:
    installed = installed_version(distribution)
    if installed:
        return Finding("software", distribution, "ok", installed)
    remedy = GET_DETECTRON2 if distribution == "detectron2" else GET_EVERYTHING
    return Finding("software", distribution, "missing", "not installed", remedy)


def _compiled(distribution: str, name: str, attempt: Callable[[], str]) -> Finding:
    if installed_version(distribution) is None:
        return Finding("compiled", name, "missing", f"{distribution} is not installed")
    try:
        return Finding("compiled", name, "ok", attempt())
    except Exception as error:  # a compiled part that does not fit raises anything
        sentence = f"{type(error).__name__}: {error}".splitlines()[0]
        remedy = (
            f"{distribution} was built for another torch or Python; `make clean setup` in a "
            "checkout of bucketrank builds it again"
        )
        return Finding("compiled", name, "broken", sentence, remedy)


def _try_torch() -> str:
    import torch

    if torch.ones(2, 3).sum().item() != 6:
        raise RuntimeError("six ones do not add up to 6")
    return "sum works"


def _try_torchvision() -> str:
    import torch
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9], [8.0, 8.0, 9.0, 9.0]])
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if kept != [0, 2]:
        raise RuntimeError(f"nms kept {kept} of three boxes, expected [0, 2]")
    return "nms works"


def _try_detectron2() -> str:
    import torch

    compiled = import_module("detectron2._C")  # which also fills torch.ops.detectron2
    box = torch.tensor([[2.0, 2.0, 4.0, 2.0, 0.0]])
    overlap = torch.ops.detectron2.box_iou_rotated(box, box).item()
    if abs(overlap - 1.0) > 1e-3:
        raise RuntimeError(f"box_iou_rotated of a box with itself is {overlap}, expected 1")
    built_for = compiled.get_cuda_version() if compiled.has_cuda() else "CPU only"
    return f"box_iou_rotated works; built for {built_for}"


def _try_pycocotools() -> str:
    import numpy as np
    from pycocotools import mask

    area = mask.area(mask.encode(np.asfortranarray(np.ones((2, 3), dtype=np.uint8))))
    if area != 6:
        raise RuntimeError(f"a mask of six pixels has area {area}")
    return "mask area works"


def _devices() -> list[Finding]:
    import torch

    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    findings = [Finding("devices", "cpu", "ok", threads)]
    if not torch.cuda.is_available():
        built = (
            f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU torch"
        )
        findings.append(Finding("devices", "cuda", "absent", f"no usable device ({built})"))
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        detail = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {_driver()}"
        findings.append(Finding("devices", f"cuda:{index}", "ok", detail))
    return findings


def _driver() -> str:
    try:
        first_line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return "driver unknown"
    numbers = [word for word in first_line.split() if word[:1].isdigit() and "." in word]
    return f"driver {numbers[0]}" if numbers else "driver unknown"


def _configs() -> Finding:
    try:
        return Finding("data", "configs", "ok", str(configs_root()))
    except BucketRankError as error:
        return Finding("data", "configs", "missing", "not found", str(error))


def _data_sets() -> list[Finding]:
    try:
        from .data import files, registry
    except ImportError as error:  # named among the software already
        return [Finding("data", "data sets", "missing", f"cannot be read: {error}")]
    findings = [
        Finding("data", "generated data", "ok", str(files.cache_folder())),
        Finding("data", "registry", "ok", str(registry.project_file() or registry.registry_file())),
    ]
    try:
        entries = registry.list_datasets()
    except BucketRankError as error:
        return [*findings[:1], Finding("data", "registry", "broken", "malformed", str(error))]
    # Detectron2's own names are always known: of them, only those whose files are there say much.
    shown = [entry for entry in entries if entry.present or entry.origin != "detectron2"]
    return findings + [_data_set(entry) for entry in shown]


def _data_set(entry: "DatasetEntry") -> Finding:
    if entry.origin == "embedded" and not entry.json.is_file():
        return Finding("data", entry.name, "ok", "embedded; generated on first use")
    if entry.present:
        return Finding("data", entry.name, "ok", str(entry.json))
    remedy = f"its files are not at {entry.json} and {entry.images}; mend {entry.source}"
    return Finding("data", entry.name, "absent", "files not found", remedy)
