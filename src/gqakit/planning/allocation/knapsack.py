"""`knapsack`: the split of the budget over the layers with the least total loss, exactly."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gqakit.planning.allocation.base import Allocation, FrontPoint, LayerEntry, tied_points, undominated


@dataclass(frozen=True)
class Knapsack(Allocation):
    """Dynamic programming over the vectors that the cache keeps: one choice for each entry, losses add up.

    `best(l, b) = min_n best(l − 1, b − size_l(n)) + loss_l(n)` gives the best point for every budget `b` at once. That
    losses of layers add up is an assumption; layers differ so much that it pays all the same (docs/results/methods.md).
    """

    name = "knapsack"
    summary = "least total loss for the bytes, exactly (dynamic programming)"
    source = "gqakit"
    needs = "model"
    loss = "predicted"

    def front(self, entries: Sequence[LayerEntry], *, tied: bool, rng: random.Random) -> list[FrontPoint]:
        """The points that no smaller one matches, smallest first."""
        if tied:
            return undominated(tied_points(entries))
        unit = math.gcd(*(entry.width for entry in entries))
        total = sum(max(entry.counts) * entry.width for entry in entries) // unit
        best = np.full(total + 1, np.inf)  # the least loss for exactly that size
        best[0] = 0.0
        chosen = np.zeros((len(entries), total + 1), dtype=np.int32)
        for index, entry in enumerate(entries):
            after = np.full(total + 1, np.inf)
            for number, (count, loss) in enumerate(zip(entry.counts, entry.losses, strict=True)):
                size = count * entry.width // unit
                candidate = best[: total + 1 - size] + loss
                better = candidate < after[size:]
                after[size:][better] = candidate[better]
                chosen[index, size:][better] = number
            best = after
        points: list[FrontPoint] = []
        for size in np.flatnonzero(np.isfinite(best)).tolist():
            at, counts = size, [0] * len(entries)
            for index in reversed(range(len(entries))):  # back along the choices
                entry = entries[index]
                counts[index] = entry.counts[int(chosen[index, at])]
                at -= counts[index] * entry.width // unit
            points.append(FrontPoint(tuple(counts), size * unit, float(best[size])))
        return undominated(points)
