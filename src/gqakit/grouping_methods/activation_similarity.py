"""`activation_similarity`: heads with similar activations on calibration text share."""

from __future__ import annotations

from dataclasses import dataclass

from gqakit.core.similarity import flat_inner
from gqakit.core.within_cluster import WithinClusterError
from gqakit.grouping_methods.base import HeadFeatures
from gqakit.grouping_methods.by_within_cluster import ByWithinCluster


@dataclass(frozen=True)
class ActivationSimilarity(ByWithinCluster):
    """Spherical k-means on the heads' activations, `W̃ C^{1/2}` flattened, solved on their cosine matrix.

    `weight_similarity` with the text's second moment in place of `I`: `⟨x_h, x_g⟩ = E[k_h · k_g]`, channel with channel.
    Keys and values are first scaled to unit mean energy each, so that both count alike. The cost of a group is
    `m − ‖Σ_h x_h‖²/m` over unit vectors `x_h`.
    """

    name = "activation_similarity"
    summary = "k-means on the cosine similarity of the heads' activations"
    source = "k-means on activations; the plain variant of AsymGQA's comparison, arXiv 2406.14963"
    needs = "moments"

    def objective(self, heads: HeadFeatures) -> WithinClusterError:
        """See the class."""
        return WithinClusterError.of_similarity(flat_inner(heads.sides))
