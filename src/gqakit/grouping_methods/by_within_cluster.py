"""What the methods have in common that keep similar heads together: a spread to minimise, worked out once a layer."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from gqakit.core.grouping import Partition
from gqakit.core.within_cluster import Spread
from gqakit.grouping_methods.base import GroupingMethod, LayerHeads, Sizes
from gqakit.grouping_methods.partition_search import best_partition


@dataclass(frozen=True)
class BySpread(GroupingMethod):
    """A method whose groups have the least `Spread` of some matrix of inner products or similarities."""

    @abstractmethod
    def objective(self, heads: LayerHeads) -> Spread:
        """The cost of a group."""

    def search(self, spread: Spread, num_groups: int, *, sizes: Sizes, rng: random.Random) -> Partition:
        """The partition: the best there is, or the best that `search.best_partition` finds."""
        return best_partition(spread.num_heads, num_groups, spread, sizes=sizes, rng=rng)

    def group(self, heads: LayerHeads, num_groups: int, *, sizes: Sizes, rng: random.Random) -> Partition:
        """See the class."""
        return self.search(self.objective(heads), num_groups, sizes=sizes, rng=rng)

    def groups(self, heads: LayerHeads, counts: Mapping[int, Sizes], *, seed: str) -> dict[int, Partition]:
        """As the base class does, from one spread."""
        spread = self.objective(heads)
        return {
            count: self.search(spread, count, sizes=sizes, rng=random.Random(f"{seed}/{count}"))
            for count, sizes in counts.items()
        }
