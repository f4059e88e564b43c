"""Partitions of least total cost, for any additive cost of a group.

Exact by dynamic programming over subsets for few heads. For more: local search, see `local_search`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gqakit.core.grouping import Partition
from gqakit.grouping_methods.base import Cost, Sizes
from gqakit.grouping_methods.local_search import LocalSearch, costs

EXACT_HEADS = 12
"""Up to here the optimum takes a second: `3^11` steps for each number of groups; each head more triples it."""
Group = tuple[int, ...]


def best_partition(
    num_heads: int, num_groups: int, cost: Cost, *, sizes: Sizes, rng: random.Random
) -> Partition:
    """The cheapest partition into `num_groups` groups: optimal up to `EXACT_HEADS` heads, else a local optimum."""
    if num_heads <= EXACT_HEADS:
        return exact_partitions(num_heads, {num_groups: sizes}, cost)[num_groups]
    return LocalSearch(num_heads, cost).partition(num_groups, sizes=sizes, rng=rng)


def exact_partitions(num_heads: int, counts: Mapping[int, Sizes], cost: Cost) -> dict[int, Partition]:
    """The optimum for each number of groups, by dynamic programming over the set of heads already placed.

    Each step places a group that holds the lowest head not yet placed, so every partition is looked at once:
    `3^(num_heads-1)` steps for each number and at most `2^num_heads` scores. Of equals the first in order wins.
    """
    groups = _all_groups(num_heads)
    usable = {size for count, sizes in counts.items() for size in _usable(num_heads, count, sizes)}
    wanted = [group for group in groups if len(group) in usable]
    found = dict(zip(wanted, costs(wanted, cost), strict=True))
    table = np.array([found.get(group, np.inf) for group in groups])
    if np.isnan(table).any():
        raise ValueError(f"the cost of group {list(groups[int(np.isnan(table).argmax())])} is not a number")
    return {count: _exact(num_heads, count, sizes, groups, table) for count, sizes in counts.items()}


def _all_groups(num_heads: int) -> list[Group]:
    """Every set of heads that is not empty, in order."""
    return sorted(
        group for size in range(1, num_heads + 1) for group in itertools.combinations(range(num_heads), size)
    )


def _usable(num_heads: int, num_groups: int, sizes: Sizes) -> range:
    """The sizes that a group can have beside `num_groups - 1` others."""
    others = num_groups - 1
    least = max(sizes.least, num_heads - others * sizes.most)
    return range(least, min(sizes.most, num_heads - others * sizes.least) + 1)


def _exact(
    num_heads: int, num_groups: int, sizes: Sizes, groups: list[Group], costs: NDArray[np.float64]
) -> Partition:
    everyone = (1 << num_heads) - 1
    steps = _steps(num_heads)
    usable = _usable(num_heads, num_groups, sizes)
    costs = np.where([len(group) in usable for group in groups], costs, np.inf)
    best = np.full(everyone + 1, np.inf)
    best[0] = 0.0
    history: list[NDArray[np.float64]] = [best]
    for _ in range(num_groups):
        best = np.full(everyone + 1, np.inf)
        np.minimum.at(best, steps.after, history[-1][steps.before] + costs[steps.group])
        history.append(best)
    chosen: list[Group] = []
    mask = everyone
    for level in range(num_groups, 0, -1):
        into = np.flatnonzero(steps.after == mask)
        totals = history[level - 1][steps.before[into]] + costs[steps.group[into]]
        step = into[int(np.argmin(totals))]
        chosen.append(groups[int(steps.group[step])])
        mask = int(steps.before[step])
    return Partition.from_groups(reversed(chosen))


@dataclass(frozen=True)
class _Steps:
    """Every way to place one more group: the heads placed before and after, as bit masks, and the group's index."""

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    group: NDArray[np.int64]


@lru_cache(maxsize=4)
def _steps(num_heads: int) -> _Steps:
    masks = np.arange(1 << num_heads)
    lowest_free = np.array(
        [next((b for b in range(num_heads) if not m >> b & 1), -1) for m in masks.tolist()]
    )
    before: list[NDArray[np.int64]] = []
    index: list[NDArray[np.int64]] = []
    after: list[NDArray[np.int64]] = []
    for number, group in enumerate(_all_groups(num_heads)):
        bits = sum(1 << head for head in group)
        possible = masks[(lowest_free == group[0]) & (masks & bits == 0)]
        before.append(possible)
        after.append(possible | bits)
        index.append(np.full(len(possible), number))
    return _Steps(np.concatenate(before), np.concatenate(after), np.concatenate(index))
