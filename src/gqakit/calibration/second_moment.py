"""The running second moment `E[x̃ x̃ᵀ]`, `x̃ = [x; 1]`, of rows that come a few at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from gqakit.models.processes import Processes

PANELS = 4
"""A product of rows with themselves is symmetric: in this number of panels, from the diagonal on, it is 5/8 of the work."""

ENOUGH = 1024
"""With this number of rows a product takes many times as long as adding it to the sum."""


class SecondMoment:
    """`Σ x xᵀ`, `Σ x` and the count of all rows seen.

    Where few come they wait, copied, until there are enough, so that few large products are made: twice as many as they
    are wide but no more than `ENOUGH`, or half as many as they are wide where that is more. Products are in float32,
    sums over them in float64.

    Args:
        width: channels of a row.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._width = width
        self._enough = max(1, width // 2, min(2 * width, ENOUGH))
        step = -(-width // PANELS)
        self._panels = [slice(start, min(start + step, width)) for start in range(0, width, step)]
        self._products = torch.zeros(width, width, dtype=torch.float64)  # from the diagonal panels on
        self._sums = torch.zeros(width, dtype=torch.float64)
        self._waiting = torch.empty(0, width)
        self._filled = 0

    def add(self, rows: Tensor) -> None:
        """Take rows `[..., width]`."""
        rows = rows.flatten(0, -2)
        self.count += len(rows)
        if not self._filled and 2 * len(rows) >= self._enough:  # not worth a copy
            self._take(rows.float())
            return
        if not len(self._waiting):
            self._waiting = rows.new_empty(self._enough, self._width, dtype=torch.float32)
        while len(rows):
            taken = rows[: self._enough - self._filled]
            self._waiting[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rows = rows[len(taken) :]
            if self._filled == self._enough:
                self._take_waiting()

    def add_up(self, processes: Processes) -> None:
        """Make it the sum over the rows that all processes have seen."""
        self._take_waiting()
        processes.add_up(self._products, self._sums)
        self.count = processes.total(self.count)

    def mean(self) -> Tensor:
        """The average over all rows, `[width + 1, width + 1]`; zeros before the first."""
        self._take_waiting()
        width, count = self._width, max(self.count, 1)
        moment = torch.empty(width + 1, width + 1, dtype=torch.float64)
        for panel in self._panels:
            rest = slice(panel.stop, width)
            corner = self._products[panel, panel]
            moment[panel, panel] = (corner + corner.T) / 2
            moment[panel, rest] = self._products[panel, rest]
            moment[rest, panel] = self._products[panel, rest].T
        moment[:width, width] = moment[width, :width] = self._sums
        moment[width, width] = self.count
        return moment.div_(count)

    def _take_waiting(self) -> None:
        self._take(self._waiting[: self._filled])
        self._filled = 0

    def _take(self, rows: Tensor) -> None:
        for panel in self._panels:
            product = rows[:, panel].T @ rows[:, panel.start :]
            self._products[panel, panel.start :] += product.cpu()
        self._sums += rows.sum(0).cpu()
