"""`aligned`: heads share that are alike once turned towards each other (arXiv 2412.20677)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from gqakit.core.grouping import Partition
from gqakit.core.similarity import aligned_similarity, averaged
from gqakit.core.within_cluster import WithinClusterError
from gqakit.grouping_methods.base import HeadFeatures, Sizes
from gqakit.grouping_methods.by_within_cluster import ByWithinCluster


@dataclass(frozen=True)
class AlignedSimilarity(ByWithinCluster):
    """Groups of equal size with the greatest similarity after Procrustes alignment.

    `sim(h, g) = max_R E[k_h · R k_g] / (‖k_h‖ ‖k_g‖)` over the turns `R` that leave the model's function as it is: any
    orthogonal map of free channels, a rotation in each frequency pair under rotary embedding, none before a q/k
    normalisation. The cost of a group `S` is `|S| − Σ_{h,g∈S} sim(h, g) / |S|`, averaged over keys and values.

    Differs from the paper: turns and similarities follow from second moments instead of stored activations, and the
    partition is found by the exact or local search of `partition_search` instead of random swaps. As in the
    paper groups are of equal size, or as equal as can be where the number does not divide.
    """

    name = "aligned"
    summary = "cosine similarity after Procrustes alignment, groups of equal size"
    source = "Align Attention Heads Before Merging Them, arXiv 2412.20677"
    needs = "moments"

    def objective(self, heads: HeadFeatures) -> WithinClusterError:
        """See the class."""
        return WithinClusterError(averaged(aligned_similarity, heads.sides))

    def search(
        self, error: WithinClusterError, num_groups: int, *, sizes: Sizes, rng: random.Random
    ) -> Partition:
        """Over balanced groups."""
        balanced = Sizes.balanced(error.num_heads, num_groups)  # within `sizes` wherever any partition is
        return super().search(error, num_groups, sizes=balanced, rng=rng)
