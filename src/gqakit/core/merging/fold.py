"""`fold`: the best shared head, with a linear map per member that costs nothing at run time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gqakit.core.linalg import eigvalsh, leading_sum
from gqakit.core.merging.base import PATIENCE, GroupCosts, HeadMerge, MergeRule, residual
from gqakit.core.merging.batch import (
    GroupBatch,
    Maps,
    alternate,
    balanced,
    fold_free,
    fold_pairwise,
)
from gqakit.core.merging.mean import Mean
from gqakit.core.rope import Channels
from gqakit.core.statistics import HeadStats


class Fold(MergeRule):
    """The best shared head of width `d`, in the metric of its query heads.

    For members `k_h` with metric `M_h`, the shared head `s = Σ_h P_h k_h` and the maps `B_h` minimise
    `Σ_h E[e_hᵀ M_h e_h]`, `e_h = k_h − B_h s`. The maps go into the weights that the head meets next:
    `W_Q[q] ← B_hᵀ W_Q[q]` for keys, `W_O[:,q] ← W_O[:,q] B_h` for values.

    *Without rotation* (values; keys of models with absolute positions) the solution is closed: with `U` the
    leading `d` eigenvectors of the Gram matrix of the stacked `M_h^{1/2} k_h`, `s = Uᵀ stack` and
    `B_h = M_h^{-1/2} U_h`.

    *With rotary embedding* a query meets `R k_h` and `R s`, `R` the rotation by the distance, and the error is
    averaged over the distances where attention looks. Start: each frequency pair one complex channel, solved
    alone, which holds at every distance. From there `B` given `P` and `P` given `B` are least squares in turn,
    `B_h = E[R k_h sᵀ Rᵀ] E[R s sᵀ Rᵀ]⁻¹` and `P_h = N⁻¹ E[Rᵀ B_hᵀ M_h R]`, `N = Σ_h E[Rᵀ B_hᵀ M_h B_h R]`: pairs that turn
    slowly share what they have in common, which no map that commutes with rotation can. Without
    recorded distances the start is the solution.

    Mean and aligned are special cases: without distances the error is never larger than theirs, with them the
    alternation starts from a better place and ends below in practice. A locked head (before
    a q/k norm) has no free map: there the rule falls back to `mean` over heads of equal length. Behind the norm
    a key is like any other, and the maps become tensors of their own.
    """

    name = "fold"
    summary = "best low-rank shared head, a linear map for each member, folded into the next weights"
    source = "gqakit"

    def on(self, channels: Channels) -> MergeRule:
        """`mean` for locked heads, else `fold`."""
        return Mean() if channels.locked else self

    def merge(self, stats: HeadStats) -> HeadMerge:
        """See the class."""
        if stats.channels.locked:
            return Mean().merge(stats)
        batch = GroupBatch.of(stats, [range(stats.num_heads)])  # in float64
        if not stats.channels.first:
            return _only(fold_free(batch, torch.arange(stats.channels.head_dim)))
        combine, expand = fold_pairwise(batch)
        start = _only((combine, expand))
        if stats.distances is None:
            return start
        if stats.channels.head_dim >= _WIDE:
            found, _, _ = alternate(batch.to(torch.float32), combine.float(), _ROUNDS, overshoot=1.0)
            combine, expand, _ = alternate(batch, found.double(), 0)
        else:
            combine, expand, _ = alternate(batch, combine, _ROUNDS)
        merge = _only(balanced(combine, expand, batch.gram))
        return min(start, merge, key=lambda candidate: residual(stats, candidate))

    def score(self, stats: HeadStats) -> float:
        """The error: from eigenvalues alone where that is all it takes, after a few rounds where it takes many."""
        return self.costs(stats)(tuple(range(stats.num_heads)))

    def costs(self, stats: HeadStats) -> GroupCosts:
        """Scores of groups, those of one size worked out side by side."""
        if stats.channels.locked or (stats.channels.first and stats.distances is None):
            return GroupCosts(lambda groups: [self.error(stats.select(group)) for group in groups])
        patience = _FEW if stats.single else PATIENCE
        if stats.channels.first:
            return GroupCosts(lambda groups: _alternated(stats, groups), patience)
        return GroupCosts(lambda groups: [_left_over(stats, group) for group in groups], patience)


_ROUNDS = 60
"""At most, before the tolerance ends the alternation."""
_WIDE = 128
"""Channels of a head from which rounds take so long that half as many, each going twice as far, are worth having, and in
float32: that moves the maps by some millionths, and the last of them are fitted in float64."""
_LARGE = 8
"""Heads of 128 channels from which the eigenvalues that a score needs are found sooner than all."""
_CLEAR = 0.01
"""Of a group's energy: less than this is a small difference of what is found by iteration, so all eigenvalues are taken."""
_SCORE_ROUNDS = 4
"""Enough to rank groups: the error is within a tenth of the one that the alternation settles at."""
_FEW = 32
"""Changes worth a try where heads are wide: one of a group of 32 heads of 128 channels takes a second."""
_BATCH_NUMBERS = 1 << 20
"""Entries of the Gram matrices that are worked on at once: they should stay in a processor's cache."""


def _only(maps: Maps) -> HeadMerge:
    combine, expand = maps
    return HeadMerge(combine[0], expand[0])


def _left_over(stats: HeadStats, group: Sequence[int]) -> float:
    """What the best approximation of the rank of one head leaves of a group (Eckart and Young)."""
    width = stats.gram.shape[1]
    if len(group) == stats.num_heads:
        return float(stats.spectrum[:-width].sum())
    index = torch.as_tensor(list(group))
    own = stats.weighted.view(stats.gram.shape)[index][:, :, index].reshape(
        len(group) * width, -1
    )  # [m · d, m · d]
    if stats.single and len(group) >= _LARGE:
        total = float(own.diagonal().double().sum())
        left = total - leading_sum(own, width)
        if left > _CLEAR * total:
            return left
    return float(eigvalsh(own)[:-width].double().clamp_min(0).sum())


def _alternated(stats: HeadStats, groups: Sequence[Sequence[int]]) -> list[float]:
    """What a few rounds leave of each group; all groups of the same size."""
    at_once = max(1, _BATCH_NUMBERS // (len(groups[0]) * stats.gram.shape[1]) ** 2)
    found: list[float] = []
    for start in range(0, len(groups), at_once):
        batch = GroupBatch.of(stats, groups[start : start + at_once])
        rounds, overshoot = (2, 1.0) if stats.single else (_SCORE_ROUNDS, 0.0)
        _, _, explained = alternate(batch, fold_pairwise(batch)[0], rounds, overshoot=overshoot)
        left = (batch.energy() - explained).clamp_min(0)
        found += [float(value) for value in left]
    return found
