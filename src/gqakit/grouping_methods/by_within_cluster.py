"""The base of the methods that keep similar heads together: least within-cluster error of some inner products."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from gqakit.core.grouping import Partition
from gqakit.core.within_cluster import WithinClusterError
from gqakit.grouping_methods.base import GroupingMethod, HeadFeatures, Sizes
from gqakit.grouping_methods.partition_search import best_partition


@dataclass(frozen=True)
class ByWithinCluster(GroupingMethod):
    """A method whose groups have the least `WithinClusterError` of some matrix of inner products or similarities."""

    @abstractmethod
    def objective(self, heads: HeadFeatures) -> WithinClusterError:
        """The cost of a group."""

    def search(
        self, error: WithinClusterError, num_groups: int, *, sizes: Sizes, rng: random.Random
    ) -> Partition:
        """The partition: the best there is, or the best that `partition_search` finds."""
        return best_partition(error.num_heads, num_groups, error, sizes=sizes, rng=rng)

    def group(self, heads: HeadFeatures, num_groups: int, *, sizes: Sizes, rng: random.Random) -> Partition:
        """See the class."""
        return self.search(self.objective(heads), num_groups, sizes=sizes, rng=rng)

    def groups(self, heads: HeadFeatures, counts: Mapping[int, Sizes], *, seed: str) -> dict[int, Partition]:
        """As the base class does, with the objective worked out once."""
        error = self.objective(heads)
        return {
            count: self.search(error, count, sizes=sizes, rng=random.Random(f"{seed}/{count}"))
            for count, sizes in counts.items()
        }
