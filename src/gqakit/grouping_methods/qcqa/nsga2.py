"""NSGA-II over rows of integers with two objectives, a whole number and a loss: pymoo's, with operators of ours.

Everything that happens to chromosomes happens to a whole population at once, as arrays. pymoo is imported when a
search starts: it takes half a second, and most conversions need none.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""Chromosomes, one a row."""
Dice = np.random.Generator


@dataclass(frozen=True)
class Breeding:
    """What a kind of chromosome is made of.

    Attributes:
        cross: children of the rows of two arrays, pair by pair; each takes after its first parent.
        mutate: the rows with some of their entries changed.
        repair: valid rows from any that the two above return, in a form of which there is one for each meaning.
        score: for every row the first objective, a whole number, and the second, the loss.
    """

    cross: Callable[[Rows, Rows, Dice], Rows]
    mutate: Callable[[Rows, Dice], Rows]
    repair: Callable[[Rows, Dice], Rows]
    score: Callable[[Rows], tuple[Rows, NDArray[np.float64]]]


class Settings(Protocol):
    """How long to search and how."""

    @property
    def population(self) -> int:
        """Chromosomes kept from one generation to the next."""
        ...

    @property
    def generations(self) -> int:
        """How often as many new ones are bred; the first population is counted as none."""
        ...

    @property
    def crossover(self) -> float:
        """Probability that two parents are crossed; otherwise their children start as copies."""
        ...


@dataclass(frozen=True)
class Found:
    """The chromosome of least loss that a search has seen for one value of the first objective."""

    size: int
    loss: float
    row: tuple[int, ...]


class Archive:
    """Keeps the best row seen for every size, whatever becomes of the population. Of equals the first seen stays."""

    def __init__(self, score: Callable[[Rows], tuple[Rows, NDArray[np.float64]]]) -> None:
        self._score = score
        self._best: dict[int, Found] = {}

    def see(self, rows: Rows) -> tuple[Rows, NDArray[np.float64]]:
        """Score the rows and remember the best."""
        sizes, losses = self._score(rows)
        order = np.lexsort((np.arange(len(rows)), losses, sizes))
        first = order[np.unique(sizes[order], return_index=True)[1]]
        for index in first.tolist():
            size, loss = int(sizes[index]), float(losses[index])
            if size not in self._best or loss < self._best[size].loss:
                self._best[size] = Found(size, loss, tuple(rows[index].tolist()))
        return sizes, losses

    def found(self) -> list[Found]:
        """The best of every size seen, smallest first, dominated or not."""
        return [self._best[size] for size in sorted(self._best)]


def undominated(found: list[Found]) -> list[Found]:
    """Those, smallest first, that lose less than every smaller one."""
    kept: list[Found] = []
    for each in found:
        if not kept or each.loss < kept[-1].loss:
            kept.append(each)
    return kept


def dice_of(seed: str) -> Dice:
    """The dice that a seed in words stands for."""
    return np.random.default_rng(random.Random(seed).getrandbits(64))


def evolve(start: Rows, breeding: Breeding, settings: Settings, *, seed: str) -> list[Found]:
    """Breed from a first population; the best row seen for every size, smallest first, dominated or not.

    At most `population × generations` chromosomes are scored besides the first ones; fewer where mating finds no
    new ones, as with few heads.

    Args:
        start: valid rows in the one form that `breeding.repair` gives them. With more than `population` of them the
            best survive the first generation.
        breeding, settings: see there.
        seed: the only source of randomness.
    """
    archive = Archive(breeding.score)
    start = distinct(start)
    if len(start) < 2:
        archive.see(start)
        return archive.found()
    _nsga2(start, breeding, settings, archive, random.Random(seed).getrandbits(64))
    return archive.found()


def distinct(rows: Rows) -> Rows:
    """Without repeated rows, in order of first occurrence."""
    return rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])]


def _nsga2(start: Rows, breeding: Breeding, settings: Settings, archive: Archive, seed: int) -> None:
    from pymoo.config import Config

    Config.warnings["not_compiled"] = False  # or pymoo prints an advertisement for its compiled modules
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.crossover import Crossover
    from pymoo.core.duplicate import DuplicateElimination
    from pymoo.core.mating import Mating
    from pymoo.core.mutation import Mutation
    from pymoo.core.problem import Problem
    from pymoo.core.repair import Repair
    from pymoo.core.sampling import Sampling
    from pymoo.operators.selection.tournament import TournamentSelection

    class Scored(Problem):
        def __init__(self) -> None:
            super().__init__(n_var=start.shape[1], n_obj=2, vtype=int)

        def _evaluate(self, x: Rows, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            out["F"] = np.column_stack(archive.see(x))

    class Start(Sampling):
        def _do(self, problem: Any, n_samples: int, *args: Any, **kwargs: Any) -> Rows:
            return start

    class Cross(Crossover):
        def __init__(self) -> None:
            super().__init__(n_parents=2, n_offsprings=2, prob=settings.crossover)

        def _do(self, problem: Any, X: Rows, *args: Any, random_state: Dice, **kwargs: Any) -> Rows:
            first, second = X
            return np.stack(
                [breeding.cross(first, second, random_state), breeding.cross(second, first, random_state)]
            )

    class Mutate(Mutation):
        def _do(self, problem: Any, X: Rows, *args: Any, random_state: Dice, **kwargs: Any) -> Rows:
            return breeding.mutate(X, random_state)

    class Mend(Repair):
        def _do(self, problem: Any, X: Rows, *, random_state: Dice, **kwargs: Any) -> Rows:
            return breeding.repair(X, random_state)

    class Distinct(DuplicateElimination):  # pymoo's compares all pairs by their distance
        def _do(self, pop: Any, other: Any, is_duplicate: NDArray[np.bool_]) -> NDArray[np.bool_]:
            seen = set() if other is None else {one.X.tobytes() for one in other}
            for index, one in enumerate(pop):
                key = one.X.tobytes()
                is_duplicate[index] = key in seen
                seen.add(key)
            return is_duplicate

    class Search(NSGA2):
        def _set_optimum(self, **kwargs: Any) -> None:
            self.opt = (
                self.pop
            )  # the archive knows better, and ranking again for it costs a third of the time

    selection, mend, differ = TournamentSelection(func_comp=_by_rank_and_crowding), Mend(), Distinct()
    search = Search(
        pop_size=settings.population,  # not `pop_sz`, which NSGA2 swallows without a word
        sampling=cast(Any, Start()),
        mating=Mating(
            selection, Cross(), Mutate(), repair=mend, eliminate_duplicates=differ, n_max_iterations=_TRIES
        ),
        repair=mend,
        eliminate_duplicates=differ,
        output=cast(Any, None),
    )
    search.setup(Scored(), termination=("n_gen", settings.generations + 1), seed=seed)
    while search.has_next():
        search.next()


_TRIES = 3
"""How often mating is repeated when it yields too few chromosomes that are new."""


def _by_rank_and_crowding(pop: Any, pairs: Rows, random_state: Dice, **kwargs: Any) -> Rows:
    """Binary tournaments, all at once: the lower front wins, then the emptier surroundings, then chance."""
    rank = np.array([one.data["rank"] for one in pop])
    crowding = np.array([one.data["crowding"] for one in pop])
    first, second = pairs.T
    wins = np.where(crowding[first] == crowding[second], random_state.random(len(pairs)) < 0.5, False)
    wins |= crowding[first] > crowding[second]
    wins = np.where(rank[first] == rank[second], wins, rank[first] < rank[second])
    return np.where(wins, first, second)[:, None]
