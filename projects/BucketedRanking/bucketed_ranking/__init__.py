"""Ranking-based detection losses and their bucketed forms, on Detectron2.

Importing this package registers its heads, meta-architectures and backbones with Detectron2, where
Detectron2 is installed. Without it, everything that needs only PyTorch still imports.
"""

import warnings
from importlib.util import find_spec

from .environment import package_version

__version__ = package_version()
__all__ = ["__version__"]


def _detectron2_imports() -> bool:
    if find_spec("detectron2") is None:
        return False
    with warnings.catch_warnings():
        # Detectron2's own, at its import, on each run: nothing that our users can act on.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")
        try:
            import detectron2.modeling  # noqa: F401
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


if _detectron2_imports():
    from . import modeling  # noqa: F401  (imported to register)
