"""Ranking-based detection losses and their bucketed forms, on Detectron2.

Importing this package registers its heads, meta-architectures and backbones with Detectron2, where
Detectron2 is installed. Without it, everything that needs only PyTorch still imports.
"""

import sys

from .environment import import_detectron2, package_version

__version__ = package_version()
__all__ = ["__version__"]

# The command line's own commands import what they need (`bucketed_ranking.engine` registers too):
# listing data sets must not wait for Detectron2.
if "bucketrank_cli" not in sys.modules and import_detectron2():
    from . import modeling  # noqa: F401  (imported to register)
