"""What a merge rule is: a shared head out of the members of a group, and the map by which it stands for each member."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gqakit.core.rope import Channels
from gqakit.core.statistics import HeadStats

Group = tuple[int, ...]


@dataclass(frozen=True)
class HeadMerge:
    """How the members of one group become one head, as maps on head channels.

    The shared head is `s = Σ_h combine[h] k_h` and stands for member `h` as `k_h ≈ expand[h] s`. `expand`
    is folded into the weights that the head meets next (query or output projection), so it costs nothing.
    """

    combine: Float[Tensor, "members head_dim head_dim"]
    expand: Float[Tensor, "members head_dim head_dim"]


PATIENCE = 64
"""Changes that a search tries on costs that are quickly worked out before it stops for want of a gain."""


class GroupCosts:
    """What groups of heads cost, each worked out once; a head alone costs nothing.

    Args:
        score: gives the costs of groups that are all of one size, with at least two heads in each.
        patience: changes that a search may try in a row without a gain.
    """

    def __init__(self, score: Callable[[Sequence[Group]], list[float]], patience: int = PATIENCE) -> None:
        self._score, self.patience = score, patience
        self._known: dict[Group, float] = {}

    def __call__(self, group: Group) -> float:
        """The cost of one group, its heads ascending."""
        return self.many([group])[0]

    def many(self, groups: Sequence[Group]) -> list[float]:
        """The costs of many groups, of any sizes."""
        missing: dict[int, list[Group]] = {}
        for group in dict.fromkeys(groups):
            if len(group) > 1 and group not in self._known:
                missing.setdefault(len(group), []).append(group)
        for alike in missing.values():
            self._known.update(zip(alike, self._score(alike), strict=True))
        return [self._known.get(group, 0.0) for group in groups]


class MergeRule(ABC):
    """A way to merge heads. One file and one line in `gqakit.core.merging` make a new one."""

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[Literal["weights", "moments"]] = "moments"
    formats: ClassVar[str] = "uniform, grouped"

    @abstractmethod
    def merge(self, stats: HeadStats) -> HeadMerge:
        """The maps for a group whose members are all the heads of `stats`."""

    def error(self, stats: HeadStats) -> float:
        """The cost of making one head of all heads of `stats`; 0 for a single head."""
        if stats.num_heads == 1:
            return 0.0
        return residual(stats, self.merge(stats))

    def score(self, stats: HeadStats) -> float:
        """What a search ranks candidate groups by: the error, or a cheaper number that ranks alike."""
        return self.error(stats)

    def costs(self, stats: HeadStats) -> GroupCosts:
        """The score of a group as a function of its members."""
        return GroupCosts(lambda groups: [self.score(stats.select(group)) for group in groups])

    def on(self, channels: Channels) -> MergeRule:
        """The rule that really acts on heads of this structure: itself, or its stated fallback."""
        return self


def residual(stats: HeadStats, merge: HeadMerge) -> float:
    """`Σ_h E[e_hᵀ M_h e_h]` with `e_h = k_h − B_h s`, `s = Σ_g P_g k_g`, `P = combine`, `B = expand`.

    Rotated keys stand for `k_h` and `s` where positions rotate: `e_h = R k_h − B_h R s`, averaged over distances.
    """
    cross = torch.einsum("hagb,gcb->hac", stats.gram, merge.combine)  # E[k_h sᵀ], [members, d, d]
    shared = torch.einsum("hab,hbc->ac", merge.combine, cross)  # E[s sᵀ], [d, d]
    own, cross, shared = stats.after_rope(stats.own), stats.after_rope(cross), stats.after_rope(shared)
    expand = merge.expand
    error = own - expand @ cross.mT - cross @ expand.mT + expand @ shared @ expand.mT
    return max(float((error * stats.metric.mT).sum()), 0.0)


def identity_maps(stats: HeadStats) -> Float[Tensor, "members head_dim head_dim"]:
    """`I` for every member: a map that changes nothing."""
    eye = torch.eye(stats.gram.shape[1], dtype=stats.gram.dtype)
    return eye.expand(stats.num_heads, -1, -1).clone()
