"""NSGA-II over rows of integers with two objectives, a whole number and a loss: what a search is given and returns.

Everything that happens to chromosomes happens to a whole population at once, as arrays. The algorithm is pymoo's; it is
imported when a search starts, which takes half a second, and most conversions need none.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from gqakit.errors import MissingDependencyError
from gqakit.grouping_methods.base import in_range
from gqakit.grouping_methods.configurable import Configurable

Rows = NDArray[np.int64]
"""Chromosomes, one per row: `[rows, genes]`."""
Rng = np.random.Generator
Scores = tuple[Rows, NDArray[np.float64]]
"""For every row the first objective, a whole number, and the second, the loss."""


class Operators(Protocol):
    """What a kind of chromosome is made of."""

    def cross(self, first: Rows, second: Rows, rng: Rng) -> Rows:
        """Children of the rows of two arrays, pair by pair; each takes after its first parent."""
        ...

    def mutate(self, rows: Rows, rng: Rng) -> Rows:
        """The rows with some of their entries changed."""
        ...

    def repair(self, rows: Rows, rng: Rng) -> Rows:
        """Valid rows from any that the two above return, in a form of which there is one for each meaning."""
        ...

    def score(self, rows: Rows) -> Scores:
        """Both objectives of every row."""
        ...


@dataclass(frozen=True)
class Evolution(Configurable):
    """How long to search and how: the options of everything that evolves.

    Attributes:
        population: chromosomes kept from one generation to the next.
        generations: how often that number of new ones is bred and scored; the first population does not count.
        crossover: probability that two parents are crossed; otherwise their children start as copies.
        mutation: probability that an entry of a chromosome changes; None for one entry per chromosome on average.
    """

    population: int = 100
    generations: int = 100
    crossover: float = 0.9
    mutation: float | None = None

    def __post_init__(self) -> None:
        in_range("population", self.population, 4)  # two pairs of parents
        in_range("generations", self.generations, 1)
        in_range("crossover", self.crossover, 0, 1)
        if self.mutation is not None:
            in_range("mutation", self.mutation, 0, 1)

    def configured(self, options: Mapping[str, Any]) -> Self:
        """See the base class.

        Raises:
            MissingDependencyError: without pymoo: here, before anything has taken time.
        """
        check_pymoo()
        return super().configured(options)

    def rate(self, entries: int) -> float:
        """The mutation rate of a chromosome with that number of entries."""
        return 1 / entries if self.mutation is None else self.mutation


def check_pymoo() -> None:
    """Raise MissingDependencyError where pymoo is not installed."""
    if importlib.util.find_spec("pymoo") is None:
        raise MissingDependencyError(
            "method qcqa and allocation qcqa_layers search with pymoo, which is not installed: pip install 'gqakit[qcqa]'"
        )


@dataclass(frozen=True)
class Found:
    """The chromosome of least loss that a search has met for one value of the first objective."""

    size: int
    loss: float
    row: tuple[int, ...]


class Archive:
    """Keeps the best row met for every size, whatever becomes of the population. Of equals the first one stays."""

    def __init__(self, operators: Operators) -> None:
        self._operators = operators
        self._best: dict[int, Found] = {}

    def score(self, rows: Rows) -> Scores:
        """Score the rows and remember the best."""
        sizes, losses = self._operators.score(rows)
        order = np.lexsort((np.arange(len(rows)), losses, sizes))  # by size, then loss, then place
        first = order[np.unique(sizes[order], return_index=True)[1]]
        for index in first.tolist():
            size, loss = int(sizes[index]), float(losses[index])
            if size not in self._best or loss < self._best[size].loss:
                self._best[size] = Found(size, loss, tuple(rows[index].tolist()))
        return sizes, losses

    def found(self) -> list[Found]:
        """The best of every size met, smallest first, dominated or not."""
        return [self._best[size] for size in sorted(self._best)]


def rng_of(seed: str) -> Rng:
    """The generator of random numbers that a seed in words stands for."""
    return np.random.default_rng(random.Random(seed).getrandbits(64))


def distinct(rows: Rows) -> Rows:
    """Without repeated rows, in order of first occurrence."""
    return rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])]
