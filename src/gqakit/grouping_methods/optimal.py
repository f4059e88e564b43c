"""`optimal`: the grouping with the least error of the chosen merge rule itself."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from gqakit.core.grouping import Partition
from gqakit.grouping_methods.base import GroupingMethod, HeadFeatures, Sizes
from gqakit.grouping_methods.local_search import LocalSearch
from gqakit.grouping_methods.partition_search import EXACT_HEADS, best_partition, exact_partitions


@dataclass(frozen=True)
class Optimal(GroupingMethod):
    """Minimises the merge rule's own error: exactly up to 12 heads, by local search beyond.

    What local search may have missed is bounded through `HeadFeatures.bound`, and the plan states the gap.
    """

    name = "optimal"
    summary = "least error of the chosen merge rule"
    source = "gqakit"
    needs = "moments"
    allocation = "knapsack"

    def group(self, heads: HeadFeatures, num_groups: int, *, sizes: Sizes, rng: random.Random) -> Partition:
        """See the class."""
        return best_partition(heads.num_heads, num_groups, heads.cost, sizes=sizes, rng=rng)

    def groups(self, heads: HeadFeatures, counts: Mapping[int, Sizes], *, seed: str) -> dict[int, Partition]:
        """All numbers of groups from one table of costs."""
        if heads.num_heads <= EXACT_HEADS:
            return exact_partitions(heads.num_heads, counts, heads.cost)
        search = LocalSearch(heads.num_heads, heads.cost)
        return {
            count: search.partition(count, sizes=sizes, rng=random.Random(f"{seed}/{count}"))
            for count, sizes in counts.items()
        }

    def gap(self, heads: HeadFeatures, partition: Partition) -> float | None:
        """0 where the search is exact, else the distance to `heads.bound`."""
        cost = sum(map(heads.cost, partition.groups))
        if heads.num_heads <= EXACT_HEADS or cost <= 0:
            return 0.0
        return max(1.0 - heads.bound(partition.num_groups) / cost, 0.0)
