"""`random`: equal groups drawn by chance, the baseline every search must beat."""

from __future__ import annotations

import random
from dataclasses import dataclass

from gqakit.core.grouping import Partition
from gqakit.grouping_methods.base import GroupingMethod, HeadFeatures, Sizes, cut_evenly


@dataclass(frozen=True)
class Random(GroupingMethod):
    """A random order of the heads cut into blocks as equal as can be."""

    name = "random"
    summary = "seeded random groups of equal size"
    source = "baseline"
    needs = "nothing"

    def group(self, heads: HeadFeatures, num_groups: int, *, sizes: Sizes, rng: random.Random) -> Partition:
        """See the class."""
        order = list(range(heads.num_heads))
        rng.shuffle(order)
        return cut_evenly(order, num_groups)
