"""`uniform`: every layer keeps the same share of its heads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gqakit.planning.allocation.base import Allocation, Point, Slot


@dataclass(frozen=True)
class Uniform(Allocation):
    """The most heads in every layer that stay within the ratio."""

    name = "uniform"
    summary = "the same share of heads in every layer"
    source = "GQA, arXiv 2305.13245"
    needs = "nothing"
    loss = "none"
    formats = "uniform, grouped"

    def front(self, slots: Sequence[Slot], *, tied: bool, rng: random.Random) -> list[Point]:
        """One point for each share that some slot can have."""
        shares = sorted({count / slot.num_heads for slot in slots for count in slot.counts})
        points: dict[tuple[int, ...], Point] = {}
        for share in shares:
            within = [[n for n in slot.counts if n <= slot.num_heads * share + 1e-6] for slot in slots]
            if not all(within):
                continue
            counts = tuple(max(possible) for possible in within)
            if tied and len(set(counts)) > 1:
                continue
            size = sum(count * slot.width for count, slot in zip(counts, slots, strict=True))
            loss = sum(
                slot.losses[slot.counts.index(count)]
                for count, slot in zip(counts, slots, strict=True)
                if slot.losses
            )
            points[counts] = Point(counts, size, loss)
        return list(points.values())
