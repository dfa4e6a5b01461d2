"""The report of `bucketrank doctor`: what is installed, what works, and how to get what is missing.

Only the standard library is imported at the top: this module must work where much is missing.
"""

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from .detectron2_setup import GET_DETECTRON2, import_detectron2
from .environment import configs_root, installed_version
from .errors import BucketRankError

if TYPE_CHECKING:
    from .data.registry import DatasetEntry


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

    @property
    def prevents_training(self) -> bool:
        return self.state in ("missing", "broken")


def collect_report() -> list[Finding]:
    """Look at everything that training needs, and try what is compiled."""
    python = f"{platform.python_version()} ({platform.system()})"
    findings = [Finding("software", "python", "ok", python), *map(_software, _needed())]
    torch_works = _compiled("torch", "torch arithmetic", _try_torch)
    findings.append(torch_works)
    if torch_works.state == "ok":
        findings += [_compiled("torchvision", "torchvision operators", _try_torchvision)]
        findings += [_compiled("detectron2", "detectron2 modeling", _try_detectron2)]
        findings += [_compiled("pycocotools", "pycocotools masks", _try_pycocotools)]
        findings += _devices()
    return [*findings, _configs(), *_data_sets()]


def _needed() -> list[str]:
    """The distributions that training imports: bucketrank's own and those of `detectors`."""
    declared = metadata.requires("bucketrank") if installed_version("bucketrank") else []
    wanted = [r for r in declared or [] if "extra ==" not in r or "detectors" in r.split(";")[1]]
    return ["bucketrank", *(re.split(r"[^\w.-]", name)[0] for name in wanted), "detectron2"]


def _software(distribution: str) -> Finding:
    installed = installed_version(distribution)
    if installed:
        return Finding("software", distribution, "ok", installed)
    return Finding("software", distribution, "missing", "not installed", GET_DETECTRON2)


def _compiled(distribution: str, name: str, attempt: Callable[[], str]) -> Finding:
    if installed_version(distribution) is None:
        return Finding("compiled", name, "missing", f"{distribution} is not installed")
    try:
        return Finding("compiled", name, "ok", attempt())
    except Exception as error:  # a compiled part that does not fit raises anything
        sentence = f"{type(error).__name__}: {error}".splitlines()[0]
        remedy = (
            f"{distribution} does not fit this torch or Python; install both again, together "
            "(`make clean setup` in a checkout of bucketrank)"
        )
        return Finding("compiled", name, "broken", sentence, remedy)


def _expect(what: str, found: Any, expected: Any) -> str:
    if found != expected:
        raise RuntimeError(f"{what} gives {found}, not {expected}")
    return f"{what} works"


def _try_torch() -> str:
    import torch

    return _expect("sum", torch.ones(2, 3).sum().item(), 6)


def _try_torchvision() -> str:
    import torch
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9], [8.0, 8.0, 9.0, 9.0]])
    return _expect("nms", nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist(), [0, 2])


def _try_detectron2() -> str:
    if not import_detectron2():
        raise RuntimeError("it does not import")
    compiled = find_spec("detectron2._C") is not None
    return f"imports; {'with its' if compiled else 'without a'} compiled part, which is not needed"


def _try_pycocotools() -> str:
    import numpy as np
    from pycocotools import mask

    ones = np.ones((2, 3), dtype=np.uint8, order="F")
    return _expect("mask area", mask.area(mask.encode(ones)), 6)


def _devices() -> list[Finding]:
    import torch
    from torch.utils.collect_env import get_nvidia_driver_version, run

    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    findings = [Finding("devices", "cpu", "ok", threads)]
    if not torch.cuda.is_available():
        cuda = torch.version.cuda
        built = f"torch is built for CUDA {cuda}" if cuda else "CPU torch"
        findings.append(Finding("devices", "cuda", "absent", f"no usable device ({built})"))
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        driver = get_nvidia_driver_version(run) or "unknown"
        detail = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, driver {driver}"
        findings.append(Finding("devices", f"cuda:{index}", "ok", detail))
        findings.append(_kernels(index))
    return findings


def _kernels(index: int) -> Finding:
    """Whether a GPU runs the Triton kernels of the exact losses."""
    import torch

    from .losses.autograd import obstacle_to_kernels

    name = f"cuda:{index} kernels"
    obstacle = obstacle_to_kernels(torch.device("cuda", index))
    if obstacle is None:
        return Finding("devices", name, "ok", "Triton runs those of the exact losses")
    detail = f"{obstacle}; so exact losses take several times as long"
    remedy = "Triton needs a C compiler (gcc, or CC=...) and a GPU that it knows"
    return Finding("devices", name, "absent", detail, remedy)


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
        Finding("data", "generated data", "ok", str(files.user_folder("cache"))),
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
