"""`keydriven`: more heads share where keys are long (KDGQA, arXiv 2408.08454)."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from gqakit.core.grouping import Partition
from gqakit.core.key_allocation import allot, min_max
from gqakit.core.statistics import HeadStats
from gqakit.grouping_methods.base import GroupingMethod, HeadFeatures, Sizes, cut, cut_evenly


@dataclass(frozen=True)
class KeyDriven(GroupingMethod):
    """Contiguous groups with sizes in proportion to the norm of their keys.

    The heads are cut into equal contiguous blocks; a block's importance is the length of its mean key head,
    `n_g = √E‖mean_{h∈g} k_h‖²`; importances are scaled to 0..1, `w_g = (n_g − min n) / (max n − min n)`; and the blocks'
    sizes become proportional to them. Of values alone (separate maps) the values' norms decide.

    Differs from the paper, which does this in training, in vision transformers, at every forward pass:
    the norms are averages over calibration text, not of the images that happen to be in the batch, and the groups
    are fixed after that; a group's head is merged from the heads that now share it, not from its first block.
    Differs from the published code: the least important group keeps a head (there its share is 0), importances that
    are equal give equal sizes (there 0/0), shares are rounded by largest remainder with the first of equals going
    first (there ties go by chance).
    """

    name = "keydriven"
    summary = "contiguous blocks, more heads where keys are long"
    source = "KDGQA, arXiv 2408.08454"
    needs = "moments"

    def group(self, heads: HeadFeatures, num_groups: int, *, sizes: Sizes, rng: random.Random) -> Partition:
        """See the class."""
        weights = min_max(block_lengths(heads.sides[0], num_groups))
        return cut(range(heads.num_heads), allot(weights, heads.num_heads, sizes.least, sizes.most))


def block_lengths(stats: HeadStats, num_groups: int) -> list[float]:
    """`n_g = √E‖mean_{h∈g} k_h‖²` of each of the equal contiguous blocks."""
    inner = torch.einsum("haga->hg", stats.gram)  # E[k_h · k_g], [heads, heads]
    blocks = cut_evenly(range(stats.num_heads), num_groups).groups
    means = [inner[list(block)][:, list(block)].mean() for block in blocks]
    return [float(mean.clamp_min(0).sqrt()) for mean in means]
