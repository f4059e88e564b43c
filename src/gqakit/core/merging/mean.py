"""`mean`: the average of the members (GQA, Ainslie et al., arXiv 2305.13245, section 2.1)."""

from __future__ import annotations

import torch

from gqakit.core.merging.base import HeadMerge, MergeRule, identity_maps
from gqakit.core.statistics import HeadStats


class Mean(MergeRule):
    """`s = mean_h k_h`, which stands for every member as it is."""

    name = "mean"
    summary = "average of the members"
    source = "GQA, arXiv 2305.13245"
    needs = "weights"

    def merge(self, stats: HeadStats) -> HeadMerge:
        """`P_h = I/m`, `B_h = I`."""
        eye = identity_maps(stats)
        return HeadMerge(eye / stats.num_heads, eye)


class MeanNorm(Mean):
    """The average, rescaled to the members' mean length `√E‖k_h‖²`.

    Averaging shortens heads that differ, which flattens the attention; this undoes it. With `C = I` the
    length is the Frobenius norm of the weights.
    """

    name = "mean_norm"
    summary = "average of the members, rescaled to their mean norm"
    source = "GQA, arXiv 2305.13245, with norm restoration"

    def merge(self, stats: HeadStats) -> HeadMerge:
        """`P_h = c·I/m` with `c = mean_h ‖k_h‖ / ‖mean_h k_h‖`."""
        return restore_norm(stats, super().merge(stats))


def restore_norm(stats: HeadStats, merge: HeadMerge) -> HeadMerge:
    """The same merge with the shared head rescaled to the members' mean length, `mean_h √E‖k_h‖² / √E‖s‖²`."""
    own = stats.own.diagonal(dim1=1, dim2=2).sum(-1).clamp_min(0).sqrt()  # [members]
    shared = torch.einsum("hxa,hagb,gxb->", merge.combine, stats.gram, merge.combine).clamp_min(0).sqrt()
    if shared <= 1e-12 * own.mean():
        return merge  # the members cancel: there is no direction to rescale
    return HeadMerge(merge.combine * (own.mean() / shared), merge.expand)
