"""`optimal`: the grouping with the least error of the chosen merge rule itself."""

from __future__ import annotations

import random

from gqakit.core.grouping import Partition
from gqakit.methods.base import GroupingMethod, LayerHeads
from gqakit.methods.search import best_partition


class Optimal(GroupingMethod):
    """Minimises the merge rule's own error, exactly for few heads, else by agglomeration and local search."""

    name = "optimal"
    summary = "least error of the chosen merge rule"
    source = "gqakit"
    needs = "moments"

    def group(self, heads: LayerHeads, num_groups: int, *, equal: bool, rng: random.Random) -> Partition:
        """See the class."""
        return best_partition(heads.num_heads, num_groups, heads.cost, equal=equal, rng=rng)
