"""`qcqa_layers`: an evolutionary search for the split of the budget over the layers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gqakit.grouping_methods.qcqa.evolution import Evolution, Rng, Rows, Scores, distinct, rng_of
from gqakit.grouping_methods.qcqa.nsga2 import evolve
from gqakit.planning.allocation.base import Allocation, FrontPoint, LayerEntry, tied_points, undominated


@dataclass(frozen=True)
class QCQALayers(Evolution, Allocation):
    """NSGA-II over one choice for each entry: vectors in the cache against the total of the losses.

    Unlike the paper's second stage, where a layer takes its grouping or stays as it was, a layer takes any point of its own
    front. With tied entries nothing is left to search: every common number of heads is tried.
    """

    name = "qcqa_layers"
    summary = "evolutionary search for the least total loss (QCQA stage 2)"
    source = "QCQA, arXiv 2406.10247"
    needs = "weights"
    loss = "objective"

    def front(self, entries: Sequence[LayerEntry], *, tied: bool, rng: random.Random) -> list[FrontPoint]:
        """The points that no smaller one found matches, smallest first.

        Raises:
            ValueError: when a loss is not finite. MissingDependencyError: without pymoo.
        """
        if tied:
            return undominated(tied_points(entries))
        choices = _Choices(entries, self.rate(len(entries)))
        seed = str(rng.getrandbits(64))
        start = choices.start(self.population, rng_of(f"{seed}/start"))
        found = evolve(start, choices, self, seed=seed)
        return undominated([FrontPoint(choices.counts(each.row), each.size, each.loss) for each in found])


@dataclass(frozen=True)
class _Choices:
    """Chromosomes `[rows, entries]` that hold for each entry which of its `counts` it takes."""

    entries: Sequence[LayerEntry]
    rate: float

    @cached_property
    def options(self) -> Rows:
        """The number of choices of each entry."""
        return np.array([len(entry.counts) for entry in self.entries])

    @cached_property
    def sizes(self) -> Rows:
        """`[entries, choices]`: vectors in the cache."""
        rows = [[count * entry.width for count in entry.counts] for entry in self.entries]
        return self._table(rows).astype(np.int64)

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """`[entries, choices]`."""
        losses = self._table([entry.losses for entry in self.entries])
        for entry, row in zip(self.entries, losses, strict=True):
            if len(entry.losses) != len(entry.counts) or not np.isfinite(row).all():
                raise ValueError(
                    f"{entry.name}: losses {entry.losses} for {entry.counts} heads, want one finite for each"
                )
        return losses

    def _table(self, rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        table = np.zeros((len(rows), max(map(len, rows))))
        for index, row in enumerate(rows):
            table[index, : len(row)] = row
        return table

    def counts(self, row: Sequence[int]) -> tuple[int, ...]:
        """The heads that each entry keeps."""
        return tuple(entry.counts[choice] for entry, choice in zip(self.entries, row, strict=True))

    def start(self, population: int, rng: Rng) -> Rows:
        """The smallest, the largest and what lies between at even shares, then the same with chance around it."""
        shares = np.linspace(0, 1, max(population // 2, 2))[:, None]
        even = np.rint(shares * (self.options - 1)).astype(np.int64)
        noise = rng.normal(scale=_NOISE, size=(population, len(self.entries)))
        around = (even[np.arange(population) % len(even)] + np.rint(noise * self.options)).astype(np.int64)
        return distinct(np.concatenate([even, around.clip(0, self.options - 1)]))[:population]

    def cross(self, first: Rows, second: Rows, rng: Rng) -> Rows:
        """Each choice from one of the parents, from the first in a share that differs from child to child."""
        return np.where(rng.random(first.shape) < rng.random((len(first), 1)), first, second)

    def mutate(self, rows: Rows, rng: Rng) -> Rows:
        """Each choice, with probability `rate`, a step up or down or drawn at random."""
        step = np.where(rng.random(rows.shape) < 0.5, 1, -1)
        drawn = (rng.random(rows.shape) * self.options).astype(np.int64)
        changed = np.where(rng.random(rows.shape) < 0.5, (rows + step).clip(0, self.options - 1), drawn)
        return np.where(rng.random(rows.shape) < self.rate, changed, rows)

    def repair(self, rows: Rows, rng: Rng) -> Rows:
        """Every row is valid."""
        return rows

    def score(self, rows: Rows) -> Scores:
        """Vectors in the cache, and the total loss."""
        entry = np.arange(len(self.entries))
        return self.sizes[entry, rows].sum(1), self.losses[entry, rows].sum(1)


_NOISE = 0.2
"""Deviation of the first random choices from even ones, as a share of the choices."""
