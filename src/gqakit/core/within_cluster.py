"""How far heads lie from the mean of their group: the k-means cost, from inner products alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gqakit.core.linalg import eigvalsh


class WithinClusterError:
    """The within-cluster sum of squares of groups of vectors that are known by their Gram matrix.

    `Σ_{h∈S} ‖x_h − mean_S x‖² = Σ_{h∈S} ‖x_h‖² − ‖Σ_{h∈S} x_h‖² / |S|`. With `x_h` the flattened weights of a head it is
    QCQA's weight-sharing error (arXiv 2406.10247); with unit vectors, `|S|` less the mean similarity inside the group. A
    candidate costs `O(|S|²)` numbers, never the `d × D` weights.

    Args:
        inner: inner products of the heads. Any symmetric matrix of similarities will do for the cost; the bound
            wants one of real vectors (positive semidefinite).
    """

    def __init__(self, inner: Float[Tensor, "heads heads"]) -> None:
        self.inner = inner.double()
        self._inner = self.inner.numpy()
        self._rows: list[list[float]] = self._inner.tolist()  # quicker by far for thousands of small groups

    @classmethod
    def of_similarity(cls, inner: Float[Tensor, "heads heads"]) -> WithinClusterError:
        """The same for unit vectors: only directions count."""
        norm = inner.double().diagonal().clamp_min(1e-30).sqrt()  # a head that is 0 stays 0
        return cls(inner.double() / norm[:, None] / norm[None, :])

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return len(self._rows)

    def __call__(self, group: Sequence[int]) -> float:
        """The cost of one group of distinct heads; 0 for a single head."""
        if len(group) < 2:
            return 0.0
        rows = self._rows
        own = sum(rows[h][h] for h in group)
        both = sum(rows[h][g] for h in group for g in group)
        return max(own - both / len(group), 0.0)

    def of_labels(self, labels: Int[Tensor, "candidates heads"]) -> Float[Tensor, " candidates"]:
        """The total cost of many partitions at once, each given by the group of every head (any labels)."""
        table = labels.numpy()
        same = table[:, :, None] == table[:, None, :]  # [candidates, heads, heads]
        shared = np.einsum("chg,hg->ch", same, self._inner) / same.sum(
            2
        )  # mean inner product with the own group
        total = (np.diagonal(self._inner) - shared).sum(1)
        return torch.as_tensor(np.maximum(total, 0.0))

    def bound(self, num_groups: int) -> float:
        """A proven lower bound on the total of any partition into `num_groups` groups.

        `trace(G_c) − Σ` of the `num_groups − 1` largest eigenvalues of the centred Gram matrix `G_c` (Ding and He, K-means
        clustering via principal component analysis, 2004): the indicator vectors of the groups span the constant
        vector and `num_groups − 1` more directions. Never below `trace(G) − Σ` of the `num_groups` largest of `G`.
        """
        centring = torch.eye(self.num_heads, dtype=torch.float64) - 1.0 / self.num_heads
        spectrum = eigvalsh(centring @ self.inner @ centring)
        kept = spectrum[: self.num_heads - (num_groups - 1)]
        return max(float(kept.sum()), 0.0)
