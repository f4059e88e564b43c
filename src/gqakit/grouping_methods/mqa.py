"""`mqa`: one KV head for all queries (Shazeer, arXiv 1911.02150)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from gqakit.core.grouping import Partition
from gqakit.grouping_methods.base import GroupingMethod, HeadFeatures, Sizes


@dataclass(frozen=True)
class MQA(GroupingMethod):
    """All heads in one group, so it only fits a budget of one KV head per layer."""

    name = "mqa"
    summary = "all heads in one group (multi-query attention)"
    source = "arXiv 1911.02150"
    needs = "nothing"
    only_count = 1

    def group(self, heads: HeadFeatures, num_groups: int, *, sizes: Sizes, rng: random.Random) -> Partition:
        """See the class."""
        return Partition.single(heads.num_heads)
