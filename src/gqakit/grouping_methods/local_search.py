"""Partitions of low total cost for more heads than can be solved exactly."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from gqakit.core.grouping import Partition
from gqakit.core.key_allocation import contiguous_map, equal_allocation
from gqakit.core.merging.base import PATIENCE
from gqakit.grouping_methods.base import Cost, Sizes, cut_evenly
from gqakit.grouping_methods.stand_in import Labels, StandIn, changed, renumbered

Group = tuple[int, ...]

STARTS = 32
KICKS = (8, 16)
KICKED = (3, 8)
"""Descents on the stand-in from random starts, then 8 times 16 from the best so far with 3 to 8 heads' places mixed up."""
SAMPLES = (3, 4, 6, 8, 12, 16)
"""Sizes of groups that the stand-in is fitted to first; between them its shares are interpolated."""
FITS = 2
"""Searches on the stand-in: the second after it is fitted to the groups that the first has found."""
POLISHED = 4
"""The stand-in's best local optima whose true cost is worked out."""
_WORTH = 1e-4
"""Share of the cost by which the stand-in must be wrong before it is fitted again, and which the second fit must promise to
save before it is looked at, where costs are dear."""
_SHARES = (0.1, 10.0)
"""Bounds on fitted shares, relative to those of a within-cluster error; a cost without structure could ask for any."""


class LocalSearch:
    """Local search (move a head, swap two) on a stand-in for the cost, then on the cost itself.

    What is known of the cost is kept: for all numbers of groups it takes one table of pairs and one of samples, and groups
    that several numbers share are worked out once where the cost remembers them. What is found for one number of
    groups does not depend on which others are asked for.

    Args:
        num_heads: to be grouped.
        cost: of a group with ascending members; with `many` it may work out several at once, and with `patience` it says
            how many changes are worth trying in a row.
    """

    def __init__(self, num_heads: int, cost: Cost) -> None:
        self.num_heads, self._cost = num_heads, cost
        self._patience: int = getattr(cost, "patience", PATIENCE)
        self._dear = self._patience < PATIENCE

    def partition(self, num_groups: int, *, sizes: Sizes, rng: random.Random) -> Partition:
        """A partition that no move and no swap that looks promising improves."""
        stand_in = self._fitted
        even = cut_evenly(range(self.num_heads), num_groups)
        found: dict[Partition, float] = {}
        for _ in range(FITS):
            best = self._optima(stand_in, num_groups, sizes, rng)
            best = best[:1] if self._dear else [*best, even]  # never worse than neighbours
            promised = stand_in.total(_rows(best))[0]
            if self._dear and found and promised > (1 - _WORTH) * min(found.values()):
                break
            found |= {partition: self._total(partition) for partition in best}
            if (
                self._dear and abs(found[best[0]] - promised) <= _WORTH * promised
            ):  # as good as the cost itself
                break
            stand_in = self._fit(stand_in, {group for partition in found for group in partition.groups})
        start = min(found, key=lambda partition: (found[partition], partition.labels))
        return self._polish(start, stand_in, sizes)

    @cached_property
    def _fitted(self) -> StandIn:
        heads = self.num_heads
        pairs = np.zeros((heads, heads))
        index = list(itertools.combinations(range(heads), 2))
        for (a, b), value in zip(index, costs(index, self._cost), strict=True):
            pairs[a, b] = pairs[b, a] = value
        if np.isnan(pairs).any():
            raise ValueError("the cost of some pair of heads is not a number")
        plain = StandIn(pairs, 1.0 / np.maximum(np.arange(heads + 1), 1))
        return self._fit(plain, [tuple(range(size)) for size in SAMPLES if size <= heads])

    def _fit(self, stand_in: StandIn, groups: Iterable[Group]) -> StandIn:
        """The shares that are right on average for groups of the sizes of these, and in between by their logarithm."""
        ratios: dict[int, list[float]] = {1: [1.0], 2: [1.0]}
        known = sorted(group for group in groups if len(group) > 2)
        for group, cost in zip(known, costs(known, self._cost), strict=True):
            plain = stand_in.within(group) / len(group)
            if plain > 0 and cost > 0:
                ratios.setdefault(len(group), []).append(cost / plain)
        sizes = sorted(ratios)
        count = np.maximum(np.arange(self.num_heads + 1), 1)
        fitted = np.interp(np.log(count), np.log(sizes), [float(np.mean(ratios[size])) for size in sizes])
        return replace(stand_in, shares=fitted.clip(*_SHARES) / count)

    def _optima(
        self, stand_in: StandIn, num_groups: int, sizes: Sizes, rng: random.Random
    ) -> list[Partition]:
        """The best local optima of the stand-in that were found, best first."""
        order = list(range(self.num_heads))
        starts = np.empty((STARTS, self.num_heads), dtype=np.int64)
        for start, row in enumerate(starts):
            if start:
                rng.shuffle(order)
            row[order] = contiguous_map(equal_allocation(self.num_heads, num_groups))
        found: dict[tuple[int, ...], float] = {}

        def descend(labels: Labels) -> None:
            settled = renumbered(stand_in.descend(labels, num_groups, sizes))
            for row, total in zip(settled.tolist(), stand_in.total(settled).tolist(), strict=True):
                found.setdefault(tuple(row), total)

        def place(labels: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
            return found[labels], labels

        descend(renumbered(starts))
        rounds, at_once = KICKS
        for _ in range(rounds):
            labels = np.array([min(found, key=place)] * at_once)
            for row in labels:
                mixed = rng.sample(order, min(rng.randint(*KICKED), self.num_heads))
                row[mixed] = row[mixed[1:] + mixed[:1]]
            descend(labels)
        return [Partition(labels) for labels in sorted(found, key=place)[:POLISHED]]

    def _total(self, partition: Partition) -> float:
        return sum(costs(partition.groups, self._cost))

    def _polish(self, start: Partition, stand_in: StandIn, sizes: Sizes) -> Partition:
        """Take changes that lower the cost itself, most promising first, until a number of them in a row do not."""
        labels, num_groups, improved = np.array(start.labels), start.num_groups, True
        patience = self._patience
        if self._dear:  # what a group takes grows faster than the square of its size
            patience = round(patience * (2 * num_groups / self.num_heads) ** 2)
        while improved:
            improved = False
            (expected,) = stand_in.changes(labels[None], num_groups, sizes)
            for index in np.argsort(expected, kind="stable")[:patience].tolist():
                if not np.isfinite(expected[index]):
                    break
                after = changed(labels, num_groups, index)
                if self._gains(labels, after):
                    labels, improved = after, True
                    break
        return Partition.of(labels.tolist())

    def _gains(self, before: Labels, after: Labels) -> bool:
        touched = set(before[before != after]) | set(after[before != after])

        def cost(labels: Labels) -> float:
            return sum(
                costs([tuple(np.flatnonzero(labels == group).tolist()) for group in touched], self._cost)
            )

        here = cost(before)
        return cost(after) < here - 1e-12 * abs(here)


def _rows(partitions: Sequence[Partition]) -> Labels:
    return np.array([partition.labels for partition in partitions])


def costs(groups: Sequence[Group], cost: Cost) -> list[float]:
    """The costs of many groups, at once where the cost knows how."""
    many = getattr(cost, "many", None)
    return [cost(group) for group in groups] if many is None else many(groups)
