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
        candidates = [HeadMerge(_only(eye, head), eye) for head in range(stats.num_heads)]
        return min(candidates, key=lambda merge: residual(stats, merge))


def _only(eye: torch.Tensor, head: int) -> torch.Tensor:
    combine = torch.zeros_like(eye)
    combine[head] = eye[head]
    return combine
