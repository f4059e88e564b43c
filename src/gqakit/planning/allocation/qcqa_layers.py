"""`qcqa_layers`: an evolutionary search for the split of the budget over the layers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gqakit.grouping_methods.base import in_range
from gqakit.grouping_methods.qcqa.nsga2 import Breeding, Dice, Rows, dice_of, distinct, evolve
from gqakit.planning.allocation.base import Allocation, Point, Slot, tied_points, undominated


@dataclass(frozen=True)
class QCQALayers(Allocation):
    """NSGA-II over one choice for each layer: vectors in the cache against the total of the layers' losses.

    Unlike the paper's second stage, where a layer takes its grouping or stays as it was, a layer takes any point of its own
    front. With tied slots nothing is left to search: every common number of heads is tried.

    Attributes:
        population: chromosomes kept from one generation to the next.
        generations: how often as many new ones are bred and scored.
        crossover: probability that two parents are crossed.
        mutation: probability that the choice of a layer changes; None for one layer on average.
    """

    name = "qcqa_layers"
    summary = "evolutionary search for the least total loss (QCQA stage 2)"
    source = "QCQA, arXiv 2406.10247"
    needs = "weights"
    loss = "objective"

    population: int = 100
    generations: int = 100
    crossover: float = 0.9
    mutation: float | None = None

    def __post_init__(self) -> None:
        in_range("population", self.population, 4)
        in_range("generations", self.generations, 1)
        in_range("crossover", self.crossover, 0, 1)
        if self.mutation is not None:
            in_range("mutation", self.mutation, 0, 1)

    def front(self, slots: Sequence[Slot], *, tied: bool, rng: random.Random) -> list[Point]:
        """The points that no smaller one found matches, smallest first.

        Raises:
            ValueError: when a loss is not finite.
        """
        if tied:
            return undominated(tied_points(slots))
        choices = _Choices(slots, 1 / len(slots) if self.mutation is None else self.mutation)
        seed = str(rng.getrandbits(64))
        start = choices.start(self.population, dice_of(f"{seed}/start"))
        found = evolve(start, Breeding(_mix, choices.mutate, _as_it_is, choices.score), self, seed=seed)
        return undominated([Point(choices.counts(each.row), each.size, each.loss) for each in found])


def _mix(first: Rows, second: Rows, dice: Dice) -> Rows:
    """Each choice from one of the parents, from the first in a share that differs from child to child."""
    return np.where(dice.random(first.shape) < dice.random((len(first), 1)), first, second)


def _as_it_is(rows: Rows, dice: Dice) -> Rows:
    return rows


@dataclass(frozen=True)
class _Choices:
    """Chromosomes that hold for each slot which of its `counts` it takes."""

    slots: Sequence[Slot]
    rate: float

    @cached_property
    def options(self) -> Rows:
        """How many choices each slot has."""
        return np.array([len(slot.counts) for slot in self.slots])

    @cached_property
    def sizes(self) -> Rows:
        """`[slots, choices]`: vectors in the cache."""
        return self._table([[count * slot.width for count in slot.counts] for slot in self.slots]).astype(
            np.int64
        )

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """`[slots, choices]`."""
        losses = self._table([slot.losses for slot in self.slots])
        for slot, row in zip(self.slots, losses, strict=True):
            if len(slot.losses) != len(slot.counts) or not np.isfinite(row).all():
                raise ValueError(
                    f"{slot.name}: losses {slot.losses} for {slot.counts} heads, want one finite for each"
                )
        return losses

    def _table(self, rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        table = np.zeros((len(rows), max(map(len, rows))))
        for index, row in enumerate(rows):
            table[index, : len(row)] = row
        return table

    def counts(self, row: Sequence[int]) -> tuple[int, ...]:
        """The heads that each slot keeps."""
        return tuple(slot.counts[choice] for slot, choice in zip(self.slots, row, strict=True))

    def start(self, population: int, dice: Dice) -> Rows:
        """The smallest, the largest and what lies between at even shares, then the same with chance around it."""
        shares = np.linspace(0, 1, max(population // 2, 2))[:, None]
        even = np.rint(shares * (self.options - 1)).astype(np.int64)
        noise = dice.normal(scale=_NOISE, size=(population, len(self.slots)))
        around = (even[np.arange(population) % len(even)] + np.rint(noise * self.options)).astype(np.int64)
        return distinct(np.concatenate([even, around.clip(0, self.options - 1)]))[:population]

    def mutate(self, rows: Rows, dice: Dice) -> Rows:
        """Each choice, with the given probability, a step up or down or drawn anew."""
        step = np.where(dice.random(rows.shape) < 0.5, 1, -1)
        drawn = (dice.random(rows.shape) * self.options).astype(np.int64)
        changed = np.where(dice.random(rows.shape) < 0.5, (rows + step).clip(0, self.options - 1), drawn)
        return np.where(dice.random(rows.shape) < self.rate, changed, rows)

    def score(self, rows: Rows) -> tuple[Rows, NDArray[np.float64]]:
        """Vectors in the cache, and the total loss."""
        slot = np.arange(len(self.slots))
        return self.sizes[slot, rows].sum(1), self.losses[slot, rows].sum(1)


_NOISE = 0.2
"""Spread of the first random choices around even ones, as a share of the choices."""
