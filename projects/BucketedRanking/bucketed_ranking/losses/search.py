"""Binary search of very many values among few borders: the most expensive step of exact losses."""

import torch
from torch import Tensor

_CELLS = 1 << 17
"""Cells of the table in ``count_below``. On one CPU core, 1e6 normal values among 2,000 borders
take 61 ms by torch.searchsorted, and 12, 7, 6 and 11 ms with 2^16, 2^17, 2^18 and 2^20 cells; among
10,000 borders 78 ms, and 33, 21, 23 and 20 ms."""


def count_below(borders: Tensor, values: Tensor, inclusive: bool) -> Tensor:
    """int32 [N]: how many of the ascending ``borders`` [K] are below each value, or equal to it if
    ``inclusive``.

    Both are of one floating-point type, and values lie within the borders, or little beyond; NaN
    gets any count. On the CPU, many values are first looked up in a table of equal cells, which
    settles all those whose cell holds no border. Putting numbers in cells rounds, but never turns
    their order round, so nothing depends on the rounding.
    """
    if values.device.type != "cpu" or values.numel() < _CELLS:
        return torch.searchsorted(borders, values, right=inclusive, out_int32=True)
    per_cell = torch.zeros(_CELLS, dtype=torch.int32)
    per_cell.index_add_(0, _cells(borders, borders), torch.ones(len(borders), dtype=torch.int32))
    unsettled = -1
    table = torch.where(per_cell > 0, unsettled, per_cell.cumsum(0, dtype=torch.int32))
    counts = table.index_select(0, _cells(borders, values))
    rest = (counts == unsettled).nonzero().squeeze(1)
    found = torch.searchsorted(
        borders, values.index_select(0, rest), right=inclusive, out_int32=True
    )
    return counts.index_copy_(0, rest, found)


def _cells(borders: Tensor, values: Tensor) -> Tensor:
    """int32 [N]: the cell of each value, ascending with the values."""
    width = borders[-1] - borders[0]
    per_unit = ((_CELLS - 1) / width).nan_to_num(0, 0, 0)
    return (values - borders[0]).mul_(per_unit).to(torch.int32).clamp_(0, _CELLS - 1)
