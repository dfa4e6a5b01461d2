"""The balance of aLRP, which unlike that of the other losses is a state of training."""

import torch
from torch import nn

from .criterion import BOX_LOSS, RankingResult

FIRST_FACTOR = 50.0
PUBLIC_EPOCH = 3665
"""Iterations of an epoch in the public aLRP code: COCO's training images, 32 at a time."""


class EpochBalance(nn.Module):
    """The factor on aLRP's localisation part: (classification + localisation) / localisation, each
    a mean over the last epoch; 50 in the first (Oksuz et al., NeurIPS 2020, and their code).

    The step that ends an epoch has the new factor already. Each process goes by the images of its
    rankings: its own, as in the public code, or those of all processes. The buffers go into
    checkpoints, those of the first process, so that a resumed run goes on in the middle of an
    epoch.

    Attributes:
        epoch_iterations: length of an epoch. Whoever knows the data sets it, as this project's
            trainer does; otherwise it is that of the public code.
    """

    def __init__(self, epoch_iterations: int = PUBLIC_EPOCH):
        super().__init__()
        self.epoch_iterations = epoch_iterations
        self.register_buffer("factor", torch.tensor(FIRST_FACTOR))
        self.register_buffer("sums", torch.zeros(2))
        self.register_buffer("iterations", torch.zeros((), dtype=torch.int64))

    def reset(self) -> None:
        """Start with the first epoch."""
        self.factor.fill_(FIRST_FACTOR)
        self.sums.zero_()
        self.iterations.zero_()

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *how):
        """Weights of a detector with another loss have no averages, and lack nothing."""
        for name, value in self.named_buffers():
            state_dict.setdefault(prefix + name, value)
        super()._load_from_state_dict(state_dict, prefix, *how)

    @torch.no_grad()
    def _count(self, result: RankingResult) -> None:
        # Nothing here makes the host wait, and buffers that a graph may hold are not written to.
        step = torch.stack([result.classification, result.statistics["box_error"]])
        sums, iterations = self.sums + step, self.iterations + 1
        ended = iterations >= self.epoch_iterations
        # An epoch without a box loss, hence without positives, says nothing.
        factor = torch.where(sums[1] > 0, sums.sum() / sums[1], self.factor)
        self.factor = torch.where(ended, factor, self.factor)
        self.sums = torch.where(ended, 0, sums)
        self.iterations = torch.where(ended, 0, iterations)

    def forward(self, result: RankingResult) -> RankingResult:
        """The result of one step with the box loss balanced; counts the step."""
        self._count(result)
        losses = {**result.losses, BOX_LOSS: self.factor * result.losses[BOX_LOSS]}
        return result._replace(losses=losses)
