"""`mqa`: one KV head for all queries (Shazeer, arXiv 1911.02150)."""

from __future__ import annotations

import random

from gqakit.core.grouping import Partition
from gqakit.methods.base import GroupingMethod, LayerHeads


class MQA(GroupingMethod):
    """All heads in one group, so it only fits a budget of one head a layer."""

    name = "mqa"
    summary = "all heads in one group (multi-query attention)"
    source = "arXiv 1911.02150"
    needs = "nothing"

    def group(self, heads: LayerHeads, num_groups: int, *, equal: bool, rng: random.Random) -> Partition:
        """See the class.

        Raises:
            ValueError: when more than one group is asked for.
        """
        if num_groups != 1:
            raise ValueError(f"mqa makes one group, {num_groups} were asked for: --kv-heads 1")
        return Partition.single(heads.num_heads)
