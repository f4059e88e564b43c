"""`neighbour`: consecutive heads share, as in the GQA paper."""

from __future__ import annotations

import random
from dataclasses import dataclass

from gqakit.core.grouping import Partition
from gqakit.grouping_methods.base import GroupingMethod, HeadFeatures, Sizes, cut_evenly


@dataclass(frozen=True)
class Neighbour(GroupingMethod):
    """Consecutive blocks of equal size; where the number does not divide, the first ones take one more."""

    name = "neighbour"
    summary = "consecutive blocks of heads"
    source = "GQA, arXiv 2305.13245"
    needs = "nothing"

    def group(self, heads: HeadFeatures, num_groups: int, *, sizes: Sizes, rng: random.Random) -> Partition:
        """See the class."""
        return cut_evenly(range(heads.num_heads), num_groups)
