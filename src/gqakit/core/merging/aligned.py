"""`aligned`: turn the members into a common frame, then average (arXiv 2412.20677)."""

from __future__ import annotations

import torch
from torch import Tensor

from gqakit.core.linalg import polar
from gqakit.core.merging.base import HeadMerge, MergeRule, identity_maps, residual
from gqakit.core.merging.mean import restore_norm
from gqakit.core.rope import Channels
from gqakit.core.statistics import HeadStats

_ITERATIONS = 100
"""At most, before the tolerance ends the alignment."""
_SCORE_ITERATIONS = 4
"""Enough to rank candidate groups: within a few percent of the final error, at a fraction of the time."""
_TOLERANCE = 1e-10
"""Relative gain in agreement below which rounding decides."""


class Aligned(MergeRule):
    """Generalised Procrustes: `min Σ_h E‖R_hᵀ k_h − s‖²` over orthogonal `R_h`, `s = mean_h R_hᵀ k_h`.

    Turning a head changes nothing as long as its query heads turn with it. Free channels take any orthogonal
    map, a frequency pair a rotation in its plane, a locked head none (there `aligned` is `mean`).
    Differs from the paper: second moments instead of stored activations, and starts from the member of
    greatest energy instead of a random one.
    """

    name = "aligned"
    summary = "average after Procrustes alignment"
    source = "Align Attention Heads Before Merging Them, arXiv 2412.20677"

    def merge(self, stats: HeadStats) -> HeadMerge:
        """`P_h = R_hᵀ/m`, `B_h = R_h`."""
        return self._align(stats, _ITERATIONS)

    def score(self, stats: HeadStats) -> float:
        """The error after a few rounds, which ranks alike."""
        return 0.0 if stats.num_heads == 1 else residual(stats, self._align(stats, _SCORE_ITERATIONS))

    def _align(self, stats: HeadStats, iterations: int) -> HeadMerge:
        rotation = identity_maps(stats)
        if stats.channels.locked or stats.num_heads == 1:
            return HeadMerge(rotation.mT / stats.num_heads, rotation)
        start = int(stats.energy().argmax())
        # Onto one member first, then onto the mean.
        rotation = nearest_turn(stats.gram[:, :, start, :], stats.channels)  # [members, d, d]
        rotation[start] = torch.eye(rotation.shape[-1], dtype=rotation.dtype)
        agreement = -1.0
        for _ in range(iterations):
            # E[k_h sᵀ], [members, d, d]: the R_h nearest to it agrees best with the mean s.
            cross = torch.einsum("hagb,gbc->hac", stats.gram, rotation) / stats.num_heads
            rotation = nearest_turn(cross, stats.channels)
            previous, agreement = agreement, float((rotation * cross).sum())
            if agreement - previous <= _TOLERANCE * abs(agreement):
                break
        return HeadMerge(rotation.mT / stats.num_heads, rotation)


class AlignedNorm(Aligned):
    """`aligned`, rescaled to the members' mean norm."""

    name = "aligned_norm"
    summary = "average after Procrustes alignment, rescaled to the members' mean norm"
    source = "arXiv 2412.20677, with norm restoration"

    def _align(self, stats: HeadStats, iterations: int) -> HeadMerge:
        return restore_norm(stats, super()._align(stats, iterations))


def nearest_turn(cross: Tensor, channels: Channels) -> Tensor:
    """The allowed orthogonal map nearest to each `[d, d]` of `cross`: `argmax_R trace(Rᵀ cross)`."""
    out = torch.zeros_like(cross)
    first, second, free = channels.indices
    if len(free):
        out[:, free[:, None], free[None, :]] = polar(cross[:, free[:, None], free[None, :]])
    if len(first):
        cosine = cross[:, first, first] + cross[:, second, second]
        sine = cross[:, second, first] - cross[:, first, second]
        length = torch.hypot(cosine, sine)
        still = length <= 1e-30  # no agreement at all: leave the pair as it is
        cosine, sine = torch.where(still, 1.0, cosine / length), torch.where(still, 0.0, sine / length)
        out[:, first, first], out[:, second, second] = cosine, cosine
        out[:, second, first], out[:, first, second] = sine, -sine
    return out
