"""`medoid`: keep the member that stands best for the others."""

from __future__ import annotations

import torch

from gqakit.core.merging.base import HeadMerge, MergeRule, identity_maps, residual
from gqakit.core.statistics import HeadStats


class Medoid(MergeRule):
    """`s = k_c` for the member `c` with the least error; the first of equals."""

    name = "medoid"
    summary = "the most central member, unchanged"
    source = "k-medoids on heads"

    def merge(self, stats: HeadStats) -> HeadMerge:
        """`P_c = I`, all other `P_h = 0`, `B_h = I`."""
        eye = identity_maps(stats)
        member = torch.eye(stats.num_heads, dtype=eye.dtype)  # row c: 1 for member c alone
        candidates = [HeadMerge(eye * chosen[:, None, None], eye) for chosen in member]
        return min(candidates, key=lambda merge: residual(stats, merge))
