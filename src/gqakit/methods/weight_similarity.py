"""`weight_similarity`: heads whose weights point the same way share."""

from __future__ import annotations

import random
from functools import cache

import torch

from gqakit.core.grouping import Partition
from gqakit.methods.base import GroupingMethod, LayerHeads
from gqakit.methods.search import best_partition


class WeightSimilarity(GroupingMethod):
    """Spherical k-means on the flattened heads `[W_K; W_V]`, solved on their cosine matrix.

    The cost of a group is `Σ_h ‖x_h − mean‖²` over unit vectors `x_h`, that is `m − ‖Σ_h x_h‖²/m`.
    """

    name = "weight_similarity"
    summary = "k-means on the cosine similarity of the heads' weights"
    source = "weight-informed baseline of AsymGQA, arXiv 2406.14963"
    needs = "weights"

    def group(self, heads: LayerHeads, num_groups: int, *, equal: bool, rng: random.Random) -> Partition:
        """See the class."""
        inner = torch.einsum(
            "hagb,ab->hg", heads.weights.gram, torch.eye(heads.weights.gram.shape[1]).double()
        )
        norm = inner.diagonal().clamp_min(1e-30).sqrt()
        cosine = inner / norm[:, None] / norm[None, :]

        @cache
        def spread(group: tuple[int, ...]) -> float:
            index = torch.as_tensor(group)
            return len(group) - float(cosine[index][:, index].sum()) / len(group)

        return best_partition(heads.num_heads, num_groups, spread, equal=equal, rng=rng)
