"""Ranking-based detection losses and their bucketed forms, on Detectron2.

Importing this package, or ``bucketed_ranking.losses``, imports nothing of Detectron2;
``import bucketed_ranking.modeling`` registers the heads, meta-architectures and backbones with it.
"""

from .environment import package_version

__version__ = package_version()
__all__ = ["__version__"]
