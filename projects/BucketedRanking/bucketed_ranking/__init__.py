"""Ranking-based detection losses and their bucketed forms, on Detectron2.

Importing this package, or ``bucketed_ranking.losses``, imports nothing of Detectron2;
``import bucketed_ranking.modeling`` registers the heads, meta-architectures and backbones with it.
"""

from .environment import installed_version

__version__ = installed_version("bucketrank") or "0+unknown"
"""``0+unknown`` where the sources are used without installing them."""
__all__ = ["__version__"]
