"""The search for partitions before all numbers of groups shared one: the other side of comparisons in `layer_planning.py`.

From many starts on a stand-in made of the costs of all pairs, then on the cost itself.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gqakit.core.grouping import Partition
from gqakit.grouping_methods import stand_in
from gqakit.grouping_methods.base import Cost, Sizes, cut_evenly

RESTARTS = 64
KICKS = 400
KICKED = (3, 8)
POLISHED = 4
PATIENCE = 64

Group = tuple[int, ...]


def _costs(groups: Sequence[Group], cost: Cost) -> list[float]:
    many = getattr(cost, "many", None)
    return [cost(group) for group in groups] if many is None else many(groups)


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

    `stand_in.changed` says what the entries mean: head by head the moves to each group, then the swaps with each later head.
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


def _descend(labels: NDArray[np.int64], pairs: NDArray[np.float64], sizes: Sizes) -> NDArray[np.int64]:
    """Take the best move or swap until none lowers the stand-in by more than rounding."""
    least = -1e-12 * max(float(pairs.max(initial=0.0)), 1e-300)
    while True:
        changes = _changes(labels, pairs, sizes)
        best = int(np.argmin(changes))
        if changes[best] >= least:
            return labels
        labels = stand_in.changed(labels, int(labels.max()) + 1, best)


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
            changed = stand_in.changed(labels, int(labels.max()) + 1, index)
            touched = set(labels[labels != changed]) | set(changed[labels != changed])
            before, after = (
                sum(cost(tuple(np.flatnonzero(which == group).tolist())) for group in touched)
                for which in (labels, changed)
            )
            if after < before - 1e-12 * abs(before):
                labels, improved = changed, True
                break
    return Partition.of(labels.tolist())
