"""`uniform`: every layer keeps the same share of its heads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gqakit.core.budget import fits
from gqakit.planning.allocation.base import Allocation, FrontPoint, LayerEntry


@dataclass(frozen=True)
class Uniform(Allocation):
    """The most heads in every layer that stay within the ratio."""

    name = "uniform"
    summary = "the same share of heads in every layer"
    source = "GQA, arXiv 2305.13245"
    needs = "nothing"
    loss = "none"
    formats = "uniform, grouped"

    def front(self, entries: Sequence[LayerEntry], *, tied: bool, rng: random.Random) -> list[FrontPoint]:
        """One point for each share that some entry can have."""
        points: dict[tuple[int, ...], FrontPoint] = {}
        for share in sorted({count / entry.num_heads for entry in entries for count in entry.counts}):
            within = [[n for n in entry.counts if fits(n, entry.num_heads, share)] for entry in entries]
            if not all(within):
                continue
            counts = tuple(map(max, within))
            if not tied or len(set(counts)) == 1:
                points[counts] = FrontPoint.of(entries, counts)
        return list(points.values())
