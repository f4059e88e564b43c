"""pymoo's NSGA-II (Deb et al., 2002) with operators of ours; imported only when a search starts."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mating import Mating
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.sampling import Sampling
from pymoo.operators.selection.tournament import TournamentSelection

from gqakit.grouping_methods.qcqa.evolution import Archive, Evolution, Operators, Rng, Rows

_TRIES = 3
"""How often mating is repeated when it yields too few chromosomes that are new."""


def run(start: Rows, operators: Operators, options: Evolution, archive: Archive, seed: int) -> None:
    """Breed from `start`, `[rows, genes]`, all of it different, scoring every chromosome through `archive`."""
    repair, different = _Repair(operators), _Different()
    mating = Mating(
        TournamentSelection(func_comp=_by_rank_and_crowding),
        _Cross(operators, options.crossover),
        _Mutate(operators),
        repair=repair,
        eliminate_duplicates=different,
        n_max_iterations=_TRIES,
    )
    search = _Search(
        pop_size=options.population,  # not `pop_sz`, which NSGA2 swallows without a word
        sampling=cast(Any, _Start(start)),
        mating=mating,
        repair=repair,
        eliminate_duplicates=different,
        output=cast(Any, None),
    )
    search.setup(_Scored(start.shape[1], archive), termination=("n_gen", options.generations + 1), seed=seed)
    while search.has_next():
        search.next()


class _Scored(Problem):
    def __init__(self, genes: int, archive: Archive) -> None:
        super().__init__(n_var=genes, n_obj=2, vtype=int)
        self._archive = archive

    def _evaluate(self, x: Rows, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        out["F"] = np.column_stack(self._archive.score(x))


class _Start(Sampling):
    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self._rows = rows

    def _do(self, problem: Any, n_samples: int, *args: Any, **kwargs: Any) -> Rows:
        return self._rows


class _Cross(Crossover):
    def __init__(self, operators: Operators, probability: float) -> None:
        super().__init__(n_parents=2, n_offsprings=2, prob=probability)
        self._cross = operators.cross

    def _do(self, problem: Any, X: Rows, *args: Any, random_state: Rng, **kwargs: Any) -> Rows:
        first, second = X  # [2, pairs, genes]
        return np.stack([self._cross(first, second, random_state), self._cross(second, first, random_state)])


class _Mutate(Mutation):
    def __init__(self, operators: Operators) -> None:
        super().__init__()
        self._mutate = operators.mutate

    def _do(self, problem: Any, X: Rows, *args: Any, random_state: Rng, **kwargs: Any) -> Rows:
        return self._mutate(X, random_state)


class _Repair(Repair):
    def __init__(self, operators: Operators) -> None:
        super().__init__()
        self._repair = operators.repair

    def _do(self, problem: Any, X: Rows, *, random_state: Rng, **kwargs: Any) -> Rows:
        return self._repair(X, random_state)


class _Different(DuplicateElimination):
    """By equality; pymoo's own compares all pairs by their distance."""

    def _do(self, pop: Any, other: Any, is_duplicate: NDArray[np.bool_]) -> NDArray[np.bool_]:
        known = set() if other is None else {one.X.tobytes() for one in other}
        for index, one in enumerate(pop):
            key = one.X.tobytes()
            is_duplicate[index] = key in known
            known.add(key)
        return is_duplicate


class _Search(NSGA2):
    def _set_optimum(self, **kwargs: Any) -> None:
        self.opt = self.pop  # the archive knows better, and ranking again for it costs a third of the time


def _by_rank_and_crowding(pop: Any, pairs: Rows, random_state: Rng, **kwargs: Any) -> Rows:
    """Binary tournaments, all at once: the lower front wins, then the emptier surroundings, then chance."""
    rank = np.array([one.data["rank"] for one in pop])
    crowding = np.array([one.data["crowding"] for one in pop])
    first, second = pairs.T
    wins = np.where(crowding[first] == crowding[second], random_state.random(len(pairs)) < 0.5, False)
    wins |= crowding[first] > crowding[second]
    wins = np.where(rank[first] == rank[second], wins, rank[first] < rank[second])
    return np.where(wins, first, second)[:, None]
