"""Ranking-based losses in PyTorch alone: AP, aLRP and Rank & Sort, bucketed and exact.

Beside them losses without a ranking that train scores towards qualities, to compare with.
"""

from .api import LOSS_NAMES, RankingLoss, alrp_loss, ap_loss, rank_sort_loss
from .quality import QUALITY_LOSSES, QualityLoss

__all__ = [
    "LOSS_NAMES", "QUALITY_LOSSES", "QualityLoss", "RankingLoss", "alrp_loss", "ap_loss",
    "rank_sort_loss",
]  # fmt: skip
