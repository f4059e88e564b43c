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
        member = labels[:, :, None] == np.arange(labels.max() + 1)  # [partitions, heads, groups]
        within = (member * (self.pairs @ member)).sum(1)
        return (self.shares[member.sum(1)] * within).sum(1)

    def changes(self, labels: Labels, num_groups: int, sizes: Sizes) -> Floats:
        """What every move, then every swap of each partition does, one row per partition; inf where it is not allowed.

        `changed` says what the entries mean: head by head the moves to each group, then the swaps with each later head.
        """
        pairs, shares, heads = self.pairs, self.shares, len(self.pairs)
        member = labels[:, :, None] == np.arange(num_groups)  # [partitions, heads, groups]
        to_group = pairs @ member  # from each head to each group
        count, within = member.sum(1), (member * to_group).sum(1)  # [partitions, groups]
        share = shares[count] * within

        own_count: Labels = np.take_along_axis(count, labels, 1)  # of each head's group
        own_within, own_share = np.take_along_axis(within, labels, 1), np.take_along_axis(share, labels, 1)
        to_own = np.take_along_axis(to_group, labels[:, :, None], 2)[:, :, 0]
        leaving = shares[own_count - 1] * (own_within - 2 * to_own) - own_share
        larger = shares[np.minimum(count + 1, heads)]
        joining = larger[:, None] * (within[:, None] + 2 * to_group) - share[:, None]
        moves = leaving[:, :, None] + joining  # [partitions, heads, groups]
        moves[(own_count <= sizes.least)[:, :, None] | (count >= sizes.most)[:, None] | member] = np.inf
        # [partitions, h, g]: what g brings into the group of h, h gone; then h leaves and g comes
        brings = 2 * (np.take_along_axis(to_group, labels[:, None].repeat(heads, 1), 2) - pairs).swapaxes(
            1, 2
        )
        exchange = shares[own_count][:, :, None] * (brings - 2 * to_own[:, :, None])
        swaps = exchange + exchange.swapaxes(1, 2)
        swaps[(labels[:, :, None] == labels[:, None]) | np.tri(heads, dtype=bool)] = np.inf
        return np.concatenate([moves.reshape(len(labels), -1), swaps.reshape(len(labels), -1)], axis=1)

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
