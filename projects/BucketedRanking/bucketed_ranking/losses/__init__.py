"""Ranking-based losses in PyTorch alone: AP, aLRP and Rank & Sort, bucketed and exact."""

from .api import LOSS_NAMES, RankingLoss, alrp_loss, ap_loss, rank_sort_loss

__all__ = ["LOSS_NAMES", "RankingLoss", "alrp_loss", "ap_loss", "rank_sort_loss"]
