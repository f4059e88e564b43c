"""A stand-in for a cost of groups, made of the costs of all pairs, and local search on it: many partitions at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gqakit.grouping_methods.base import Sizes

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class StandIn:
    """A group of `k` heads costs `shares[k] Σ` of its pairs, each counted in both orders.

    With `shares[k] = 1/k` that is exact where the cost is a within-cluster error. For other costs the shares are fitted to
    groups whose cost is known: which pairs go together is much the same whatever the size of a group, how much the
    members' differences add up is not.

    Attributes:
        pairs: `[heads, heads]`, symmetric, 0 on the diagonal.
        shares: `[heads + 1]`.
    """

    pairs: Floats
    shares: Floats

    def within(self, group: tuple[int, ...]) -> float:
        """The costs of a group's pairs, each counted in both orders."""
        return float(self.pairs[np.ix_(group, group)].sum())

    def total(self, labels: Labels) -> Floats:
        """What partitions cost, `[partitions]`, for `labels` of `[partitions, heads]`."""
        member = np.eye(labels.max() + 1)[labels]  # [partitions, heads, groups], 1 where a head belongs
        within = (member * (self.pairs @ member)).sum(1)
        return (self.shares[member.sum(1).astype(np.int64)] * within).sum(1)

    def changes(self, labels: Labels, num_groups: int, sizes: Sizes) -> Floats:
        """What every move, then every swap of each partition does, one row per partition; inf where it is not allowed.

        `changed` says what the entries mean: head by head the moves to each group, then the swaps with each later head.
        """
        pairs, shares, heads, count = self.pairs, self.shares, len(self.pairs), len(labels)
        member = np.eye(num_groups)[labels]  # [partitions, heads, groups], 1 where a head belongs
        to_group = pairs @ member  # from each head to each group
        size = member.sum(1).astype(np.int64)  # [partitions, groups]
        within = (member * to_group).sum(1)
        share, larger = shares[size] * within, shares[np.minimum(size + 1, heads)]
        row = np.arange(count)[:, None]
        own_size = size[row, labels]  # [partitions, heads]: of each head's group
        to_own = to_group[row, np.arange(heads), labels]
        leaving = shares[own_size - 1] * (within[row, labels] - 2 * to_own) - share[row, labels]

        found = np.empty((count, heads * num_groups + heads * heads))
        moves = found[:, : heads * num_groups].reshape(count, heads, num_groups)
        np.multiply(to_group, 2 * larger[:, None], out=moves)
        moves += (larger * within - share)[:, None]  # joining, in place of what the group costs now
        moves += leaving[:, :, None]
        barred = (own_size <= sizes.least)[:, :, None] | (size >= sizes.most)[:, None] | (member > 0)
        np.copyto(moves, np.inf, where=barred)

        swaps = found[:, heads * num_groups :].reshape(count, heads, heads)
        exchange = to_group @ member.swapaxes(1, 2)  # [partitions, g, h]: from g to the group of h
        exchange -= pairs  # h gone
        exchange -= to_own[:, None]
        exchange *= 2 * shares[own_size][:, None]  # then h leaves and g comes
        np.add(exchange, exchange.swapaxes(1, 2), out=swaps)
        np.copyto(swaps, np.inf, where=(labels[:, :, None] == labels[:, None]) | np.tri(heads, dtype=bool))
        return found

    def descend(self, labels: Labels, num_groups: int, sizes: Sizes) -> Labels:
        """Take the best move or swap of each partition until none lowers its cost by more than rounding."""
        least = -1e-12 * max(float(self.pairs.max(initial=0.0)), 1e-300)
        labels, moving = labels.copy(), np.arange(len(labels))
        while len(moving):
            changes = self.changes(labels[moving], num_groups, sizes)
            best = changes.argmin(1)
            gains = changes[np.arange(len(moving)), best] < least
            moving, best = moving[gains], best[gains]
            for row, index in zip(moving.tolist(), best.tolist(), strict=True):
                labels[row] = changed(labels[row], num_groups, index)
        return labels


def changed(labels: Labels, num_groups: int, index: int) -> Labels:
    """One partition's labels after the change that stands at a place of `StandIn.changes`."""
    labels = labels.copy()
    if index < len(labels) * num_groups:
        head, group = divmod(index, num_groups)
        labels[head] = group
    else:
        a, b = divmod(index - len(labels) * num_groups, len(labels))
        labels[a], labels[b] = labels[b], labels[a]
    return labels


def renumbered(labels: Labels) -> Labels:
    """Labels of partitions, `[partitions, heads]`, with the groups of each in the order of their first heads."""
    first = (labels[:, :, None] == labels[:, None]).argmax(2)  # of each head, the first head of its group
    begins = first == np.arange(labels.shape[1])
    return np.take_along_axis(begins.cumsum(1) - 1, first, 1)
