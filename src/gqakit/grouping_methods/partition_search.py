"""Partitions of least total cost, for any additive cost of a group.

Exact by dynamic programming over subsets for few heads. For more: local search (move a head, swap two) from many
starts on a stand-in made of the costs of all pairs, then on the cost itself.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gqakit.core.grouping import Partition
from gqakit.grouping_methods.base import Cost, Sizes, cut_evenly

EXACT_HEADS = 12
"""Up to here the optimum takes a second: `3^11` steps for each number of groups; each head more triples it."""
RESTARTS = 64
KICKS = 400
KICKED = (3, 8)
"""Descents on the stand-in from random starts, then from the best so far with 3 to 8 heads' places mixed up: a fraction of
a second for 32 heads."""
POLISHED = 4
"""The stand-in's best local optima whose true cost is worked out."""
PATIENCE = 64
"""Changes tried on the true cost, which is dear, without a gain before the search stops."""

Group = tuple[int, ...]


def best_partition(
    num_heads: int, num_groups: int, cost: Cost, *, sizes: Sizes, rng: random.Random
) -> Partition:
    """The cheapest partition into `num_groups` groups: optimal up to `EXACT_HEADS` heads, else a local optimum."""
    if num_heads <= EXACT_HEADS:
        return exact_partitions(num_heads, {num_groups: sizes}, cost)[num_groups]
    return local_partition(num_heads, num_groups, cost, sizes=sizes, rng=rng)


def exact_partitions(num_heads: int, counts: Mapping[int, Sizes], cost: Cost) -> dict[int, Partition]:
    """The optimum for each number of groups, by dynamic programming over the set of heads already placed.

    Each step places a group that holds the lowest head not yet placed, so every partition is looked at once:
    `3^(num_heads-1)` steps for each number and at most `2^num_heads` scores. Of equals the first in order wins.
    """
    groups = _all_groups(num_heads)
    usable = {size for count, sizes in counts.items() for size in _usable(num_heads, count, sizes)}
    wanted = [group for group in groups if len(group) in usable]
    found = dict(zip(wanted, _costs(wanted, cost), strict=True))
    costs = np.array([found.get(group, np.inf) for group in groups])
    if np.isnan(costs).any():
        raise ValueError(f"the cost of group {list(groups[int(np.isnan(costs).argmax())])} is not a number")
    return {count: _exact(num_heads, count, sizes, groups, costs) for count, sizes in counts.items()}


def _costs(groups: Sequence[Group], cost: Cost) -> list[float]:
    """The costs of many groups, at once where the cost knows how."""
    many = getattr(cost, "many", None)
    return [cost(group) for group in groups] if many is None else many(groups)


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


def local_partition(
    num_heads: int, num_groups: int, cost: Cost, *, sizes: Sizes, rng: random.Random
) -> Partition:
    """A partition that no move and no swap that looks promising improves.

    The stand-in for a group's cost is `2/|S| Σ` of the costs of its pairs: exact where the cost is a within-cluster error,
    and close for the others, which then decide between its best local optima and the changes it suggests.
    """
    pairs = np.zeros((num_heads, num_heads))
    index = list(itertools.combinations(range(num_heads), 2))
    for (a, b), value in zip(index, _costs(index, cost), strict=True):
        pairs[a, b] = pairs[b, a] = value
    if np.isnan(pairs).any():
        raise ValueError("the cost of some pair of heads is not a number")
    order = list(range(num_heads))
    found: dict[Partition, float] = {}
    for start in range(1 + RESTARTS):
        if start:
            rng.shuffle(order)
        labels = _descend(np.array(cut_evenly(order, num_groups).labels), pairs, sizes)
        found[Partition.of(labels.tolist())] = _total(labels, pairs)
    for _ in range(KICKS):  # from the best so far, with a few heads' places mixed up
        labels = np.array(min(found, key=lambda partition: (found[partition], partition.labels)).labels)
        mixed = rng.sample(range(num_heads), min(rng.randint(*KICKED), num_heads))
        labels[mixed] = labels[mixed[1:] + mixed[:1]]
        labels = _descend(labels, pairs, sizes)
        found.setdefault(Partition.of(labels.tolist()), _total(labels, pairs))
    best = sorted(found, key=lambda partition: (found[partition], partition.labels))[:POLISHED]
    best.append(cut_evenly(range(num_heads), num_groups))  # never worse than neighbours
    start = min(best, key=lambda partition: (sum(map(cost, partition.groups)), partition.labels))
    return _polish(start, pairs, cost, sizes)


def _total(labels: NDArray[np.int64], pairs: NDArray[np.float64]) -> float:
    state = _State.of(labels, pairs)
    return float((state.within / state.count).sum())


@dataclass(frozen=True)
class _State:
    """A partition in the stand-in's terms.

    Attributes:
        count: `[groups]`, members.
        to_group: `[heads, groups]`, pair costs from each head to each group.
        within: `[groups]`, pair costs inside, every pair counted twice.
    """

    count: NDArray[np.float64]
    to_group: NDArray[np.float64]
    within: NDArray[np.float64]

    @classmethod
    def of(cls, labels: NDArray[np.int64], pairs: NDArray[np.float64]) -> _State:
        member = np.eye(int(labels.max()) + 1)[labels]  # [heads, groups], 1 where a head belongs
        to_group = pairs @ member
        return cls(member.sum(0), to_group, (member * to_group).sum(0))


def _changes(labels: NDArray[np.int64], pairs: NDArray[np.float64], sizes: Sizes) -> NDArray[np.float64]:
    """What every move, then every swap does to the stand-in, as one row; inf where it is not allowed.

    `_changed` says what the entries mean: head by head the moves to each group, then the swaps with each later head.
    """
    state = _State.of(labels, pairs)
    own, count, within, heads = labels, state.count, state.within, np.arange(len(labels))
    to_own = state.to_group[heads, own]
    share = within / count
    with np.errstate(divide="ignore", invalid="ignore"):
        leaving = (within[own] - 2 * to_own) / (count[own] - 1) - share[own]
    joining = (within + 2 * state.to_group) / (count + 1) - share
    moves = leaving[:, None] + joining  # [heads, groups]
    moves[(count[own] <= sizes.least)[:, None] | (count >= sizes.most)[None, :]] = np.inf
    moves[heads, own] = np.inf
    brings = 2 * (state.to_group[:, own] - pairs).T  # [h, g]: what g brings into the group of h, h gone
    exchange = (brings - 2 * to_own[:, None]) / count[own][:, None]  # in the group of h: h leaves, g comes
    swaps = exchange + exchange.T
    swaps[(own[:, None] == own[None, :]) | np.tri(len(labels), dtype=bool)] = np.inf
    return np.concatenate([moves.ravel(), swaps.ravel()])


def _changed(labels: NDArray[np.int64], index: int) -> NDArray[np.int64]:
    """The labels after the change that stands at a place of `_changes`."""
    labels, num_groups = labels.copy(), int(labels.max()) + 1
    if index < len(labels) * num_groups:
        head, group = divmod(index, num_groups)
        labels[head] = group
    else:
        a, b = divmod(index - len(labels) * num_groups, len(labels))
        labels[a], labels[b] = labels[b], labels[a]
    return labels


def _descend(labels: NDArray[np.int64], pairs: NDArray[np.float64], sizes: Sizes) -> NDArray[np.int64]:
    """Take the best move or swap until none lowers the stand-in by more than rounding."""
    least = -1e-12 * max(float(pairs.max(initial=0.0)), 1e-300)
    while True:
        changes = _changes(labels, pairs, sizes)
        best = int(np.argmin(changes))
        if changes[best] >= least:
            return labels
        labels = _changed(labels, best)


def _polish(start: Partition, pairs: NDArray[np.float64], cost: Cost, sizes: Sizes) -> Partition:
    """Take changes that lower the cost itself, most promising first, until `PATIENCE` of them in a row do not."""
    labels = np.array(start.labels)
    improved = True
    while improved:
        improved = False
        expected = _changes(labels, pairs, sizes)
        for index in np.argsort(expected, kind="stable")[:PATIENCE].tolist():
            if not np.isfinite(expected[index]):
                break
            changed = _changed(labels, index)
            touched = set(labels[labels != changed]) | set(changed[labels != changed])
            before, after = (
                sum(cost(tuple(np.flatnonzero(which == group).tolist())) for group in touched)
                for which in (labels, changed)
            )
            if after < before - 1e-12 * abs(before):
                labels, improved = changed, True
                break
    return Partition.of(labels.tolist())
