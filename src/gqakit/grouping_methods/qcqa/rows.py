"""Many partitions at once, as rows of labels: what an evolutionary search does to them.

Every function takes and returns `[rows, heads]`. Those that breed take canonical rows (groups numbered by first
occurrence) and return rows with any labels below `2·heads`; `Limits.repair` makes these canonical and allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gqakit.core.key_allocation import equal_allocation
from gqakit.grouping_methods.base import Sizes
from gqakit.grouping_methods.qcqa.evolution import Rng, Rows


def canonical(rows: Rows) -> Rows:
    """The labels of each row renumbered by first occurrence."""
    leader = (rows[:, :, None] == rows[:, None, :]).argmax(2)  # the first head of each head's group
    number = np.cumsum(leader == np.arange(rows.shape[1]), axis=1) - 1
    return np.take_along_axis(number, leader, axis=1)


def num_groups(rows: Rows) -> Rows:
    """The number of groups of each canonical row."""
    return rows.max(axis=1) + 1


def group_sizes(rows: Rows) -> Rows:
    """`[rows, heads]`: members of each label of canonical rows; 0 for labels that a row lacks."""
    return (rows[:, :, None] == np.arange(rows.shape[1])).sum(1)


@dataclass(frozen=True)
class Limits:
    """The numbers of groups that are allowed, and for each what size a group may have, as arrays by number.

    Attributes:
        nearest: the allowed number of groups next to each number from 0 to the heads, the smaller of two.
        least, most: sizes that groups may have with each of these numbers.
    """

    nearest: Rows
    least: Rows
    most: Rows

    @classmethod
    def of(cls, num_heads: int, counts: Mapping[int, Sizes]) -> Limits:
        """From the sizes allowed with each number of groups."""
        nearest = [min(counts, key=lambda count: (abs(count - n), count)) for n in range(num_heads + 1)]
        sizes = [counts[count] for count in nearest]
        return cls(
            np.array(nearest),
            np.array([each.least for each in sizes]),
            np.array([each.most for each in sizes]),
        )

    def repair(self, rows: Rows, rng: Rng) -> Rows:
        """Canonical rows within the limits.

        Of too many groups the two smallest become one, from the largest of too few one head goes its own way, and
        while some size is out of bounds a head goes from the largest group to the smallest: at the latest that ends
        with groups as equal as can be, which are allowed wherever any are.
        """
        rows = canonical(rows)
        while True:
            count, sizes = num_groups(rows), group_sizes(rows)
            too_many, too_few = count > self.nearest[count], count < self.nearest[count]
            smallest = np.where(sizes > 0, sizes, rows.shape[1]).min(1)
            unequal = (smallest < self.least[count]) | (sizes.max(1) > self.most[count])
            unequal &= ~(too_many | too_few)
            for which, change in ((too_many, _merge), (too_few, _split), (unequal, _level)):
                if which.any():
                    rows[which] = canonical(change(rows[which], sizes[which], rng))
            if not (too_many | too_few | unequal).any():
                return rows


def _smallest(sizes: Rows) -> Rows:
    return np.where(sizes > 0, sizes, sizes.shape[1] + 1).argmin(1)


def _merge(rows: Rows, sizes: Rows, rng: Rng) -> Rows:
    first = _smallest(sizes)[:, None]
    others = np.where(np.arange(sizes.shape[1]) == first, 0, sizes)
    return np.where(rows == first, _smallest(others)[:, None], rows)


def _split(rows: Rows, sizes: Rows, rng: Rng) -> Rows:
    return _send(rows, sizes, num_groups(rows), rng)


def _level(rows: Rows, sizes: Rows, rng: Rng) -> Rows:
    return _send(rows, sizes, _smallest(sizes), rng)


def _send(rows: Rows, sizes: Rows, target: Rows, rng: Rng) -> Rows:
    """A random head of each row's largest group moved to the group `target`."""
    inside = rows == sizes.argmax(1)[:, None]
    head = np.where(inside, rng.random(rows.shape), -1.0).argmax(1)
    return np.where(np.arange(rows.shape[1]) == head[:, None], target[:, None], rows)


def first_rows(num_heads: int, counts: Mapping[int, Sizes], population: int, rng: Rng) -> Rows:
    """Consecutive blocks for every number of groups, then random partitions, numbers taking turns."""
    numbers = np.array(sorted(counts))
    blocks = [np.repeat(np.arange(n), equal_allocation(num_heads, n)) for n in numbers.tolist()]
    drawn = numbers[np.arange(max(population - len(numbers), 0)) % len(numbers)][:, None]
    founder = np.argsort(rng.random((len(drawn), num_heads)), axis=1)  # the first few found a group each
    join = (rng.random(founder.shape) * drawn).astype(np.int64)
    rows = np.concatenate([np.stack(blocks), np.where(founder < drawn, founder, join)])
    return Limits.of(num_heads, counts).repair(rows, rng)


def cross_groups(first: Rows, second: Rows, rng: Rng) -> Rows:
    """Children with some whole groups of the first parent, and as much as is left of the second's.

    A group of the second that lost more than half of its heads does not go on: the rest follows one of those heads.
    So a child has about as many groups as its parents, and what they are called does not matter.
    """
    taken = _whole_groups(first, rng)
    same = second[:, :, None] == second[:, None, :]  # [rows, heads, heads]
    lost, size = (same & taken[:, None, :]).sum(2), same.sum(2)
    draw = np.where(taken, 1 + rng.random(taken.shape), 0.0)
    leader = np.where(same, draw[:, None, :], 0.0).argmax(2)  # one lost head for all that are left of a group
    follow = np.take_along_axis(first, leader, axis=1)
    return np.where(taken, first, np.where(2 * lost > size, follow, second + first.shape[1]))


def cross_blocks(first: Rows, second: Rows, rng: Rng) -> Rows:
    """The same for groups of equal size: an order of the heads cut into as many blocks as the first parent has.

    Some whole groups of the first parent come first, then the second's groups, those that lost fewest heads before
    the others.
    """
    taken = _whole_groups(first, rng)
    same = second[:, :, None] == second[:, None, :]
    lost = (same & taken[:, None, :]).sum(2)
    keys = np.where(taken, first - first.shape[1], second + lost * first.shape[1])
    return _cut(keys, num_groups(first))


def _whole_groups(rows: Rows, rng: Rng) -> NDArray[np.bool_]:
    """The heads in a random share of each row's groups."""
    share = rng.random((len(rows), 1))
    return np.take_along_axis(rng.random(rows.shape) < share, rows, axis=1)


def _cut(keys: Rows, counts: Rows) -> Rows:
    """Heads in the order of their keys, `[rows, heads]`, cut into `counts` blocks as equal as can be."""
    place = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1, kind="stable")
    return place * counts[:, None] // keys.shape[1]


@dataclass(frozen=True)
class Near:
    """For every head the others, nearest first: `[heads, heads − 1]`."""

    order: Rows

    @classmethod
    def of(cls, inner: NDArray[np.float64]) -> Near:
        """From the inner products of the heads."""
        own = np.diagonal(inner)
        apart = own[:, None] + own - 2 * inner
        np.fill_diagonal(apart, -np.inf)
        return cls(np.argsort(apart, axis=1, kind="stable")[:, 1:])

    def mates(self, heads: Rows, rng: Rng) -> Rows:
        """Another head for each, any of them but near ones more often."""
        others = self.order.shape[1]
        return self.order[heads, (rng.random(heads.shape) ** _NEARNESS * others).astype(np.int64)]

    def move(self, rows: Rows, rate: float, rng: Rng) -> Rows:
        """Each head with probability `rate` goes to the group of a mate, or alone; now and then a whole group does."""
        heads = rows.shape[1]
        moved = rng.random(rows.shape) < rate
        count = num_groups(rows)[:, None]
        alone = rng.random(rows.shape) * (count + 1) < 1
        target = np.take_along_axis(
            rows, self.mates(np.broadcast_to(np.arange(heads), rows.shape), rng), axis=1
        )
        rows = np.where(moved, np.where(alone, count, target), rows)
        source, into = self._pair(rows, rng)
        merged = rng.random(source.shape) < _WHOLE * rate * heads
        return np.where(merged & (rows == source), into, rows)

    def swap(self, rows: Rows, rate: float, rng: Rng) -> Rows:
        """Each head with probability `rate` goes to the group of a mate, from which another comes in its place."""
        rows = rows.copy()
        hits = (rng.random(rows.shape) < rate).sum(1)
        for turn in range(int(hits.max(initial=0))):
            lines = np.flatnonzero(hits > turn)
            head = rng.integers(rows.shape[1], size=len(lines))
            mate = self.mates(head, rng)
            inside = rows[lines] == rows[lines, mate][:, None]
            draw = np.where(inside, rng.random(inside.shape), -1.0)
            alone = inside.sum(1) == 1
            draw[np.arange(len(lines)), mate] = np.where(alone, 2.0, -1.0)  # the mate itself stays if it can
            other = draw.argmax(1)
            rows[lines, head], rows[lines, other] = rows[lines, other], rows[lines, head]
        return rows

    def recut(self, rows: Rows, counts: Rows, rate: float, rng: Rng) -> Rows:
        """Now and then the heads, group by group, cut into another of the given numbers of blocks."""
        drawn = counts[rng.integers(len(counts), size=len(rows))]
        changed = rng.random((len(rows), 1)) < _WHOLE * rate * rows.shape[1]
        return np.where(changed, _cut(rows, drawn), rows)

    def _pair(self, rows: Rows, rng: Rng) -> tuple[Rows, Rows]:
        """For each row the group of a random head and that of a mate."""
        head = rng.integers(rows.shape[1], size=len(rows))
        lines = np.arange(len(rows))
        return rows[lines, head][:, None], rows[lines, self.mates(head, rng)][:, None]


_NEARNESS = 3
"""A mate is the head at place `u^3 · heads` by distance, `u` uniform: half of them among the nearest eighth."""
_WHOLE = 0.1
"""How often a whole group moves or a partition is recut, as a share of how often a head moves: often enough to reach other
numbers of groups, and rare since it undoes most of what a chromosome has learnt."""
