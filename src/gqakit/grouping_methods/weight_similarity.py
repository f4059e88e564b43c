"""`weight_similarity`: heads whose weights point the same way share."""

from __future__ import annotations

from dataclasses import dataclass

from gqakit.core.within_cluster import WithinClusterError
from gqakit.grouping_methods.base import HeadFeatures
from gqakit.grouping_methods.by_within_cluster import ByWithinCluster


@dataclass(frozen=True)
class WeightSimilarity(ByWithinCluster):
    """Spherical k-means on the flattened heads `[W_K; W_V]`, solved on their cosine matrix.

    The cost of a group is `Σ_h ‖x_h − mean‖²` over unit vectors `x_h`, that is `m − ‖Σ_h x_h‖²/m`.
    """

    name = "weight_similarity"
    summary = "k-means on the cosine similarity of the heads' weights"
    source = "weight-informed baseline of AsymGQA, arXiv 2406.14963"
    needs = "weights"

    def objective(self, heads: HeadFeatures) -> WithinClusterError:
        """See the class."""
        return WithinClusterError.of_similarity(heads.inner)
