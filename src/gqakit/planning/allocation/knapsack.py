"""`knapsack`: the split of the budget over the layers with the least total loss, exactly."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gqakit.planning.allocation.base import Allocation, Point, Slot, tied_points, undominated


@dataclass(frozen=True)
class Knapsack(Allocation):
    """Dynamic programming over the vectors that the cache keeps: one choice for each slot, losses add up.

    It gives the best point for every budget at once. That losses of layers add up is an assumption; layers
    differ so much that it pays all the same (docs/results/methods.md).
    """

    name = "knapsack"
    summary = "least total loss for the bytes, exactly (dynamic programming)"
    source = "gqakit"
    needs = "model"
    loss = "measured"

    def front(self, slots: Sequence[Slot], *, tied: bool, rng: random.Random) -> list[Point]:
        """The points that no smaller one matches, smallest first."""
        if tied:
            return undominated(tied_points(slots))
        unit = math.gcd(*(slot.width for slot in slots))
        total = sum(max(slot.counts) * slot.width for slot in slots) // unit
        best = np.full(total + 1, np.inf)
        best[0] = 0.0
        chosen = np.zeros((len(slots), total + 1), dtype=np.int32)
        for index, slot in enumerate(slots):
            after = np.full(total + 1, np.inf)
            for number, (count, loss) in enumerate(zip(slot.counts, slot.losses, strict=True)):
                size = count * slot.width // unit
                candidate = best[: total + 1 - size] + loss
                better = candidate < after[size:]
                after[size:][better] = candidate[better]
                chosen[index, size:][better] = number
            best = after
        points: list[Point] = []
        for size in np.flatnonzero(np.isfinite(best)).tolist():
            at, counts = size, [0] * len(slots)
            for index in range(len(slots) - 1, -1, -1):
                slot = slots[index]
                counts[index] = slot.counts[int(chosen[index, at])]
                at -= counts[index] * slot.width // unit
            points.append(Point(tuple(counts), size * unit, float(best[size])))
        return undominated(points)
