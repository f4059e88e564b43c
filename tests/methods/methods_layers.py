"""Small layers as a grouping method sees them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.rope import Channels
from gqakit.core.statistics import HeadStats, LayerStatistics, key_stats, value_stats, weight_inner
from gqakit.core.within_cluster import WithinClusterError
from gqakit.grouping_methods.base import Cost, HeadFeatures

HEAD_DIM, WIDTH = 4, 6
BOTH = ("key", "value")


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Gaussian numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def forbidden(group: tuple[int, ...]) -> float:
    """The cost for a method that must not look at the merge rule's error."""
    raise AssertionError("this method must not look at the merge rule's error")


def heads_of(
    key: Tensor,
    value: Tensor | None = None,
    *,
    sides: Sequence[str] = BOTH,
    moment: Tensor | None = None,
    channels: Channels | None = None,
    cost: Cost | None = None,
) -> HeadFeatures:
    """A layer with these weights, `[heads, head_dim, width]`; values like keys unless given.

    Args:
        sides: what is grouped together.
        moment: `E[x̃ x̃ᵀ]`, or `C = I`.
        channels: of key heads; free by default.
        cost: the merge rule's error; by default the weight-sharing error.
    """
    value = key if value is None else value
    width = key.shape[2]
    projections = {"key": Projection(key), "value": Projection(value)}
    weights = AttentionWeights(
        projections["key"],
        projections["key"],
        projections["value"],
        value.new_zeros(len(key), width, key.shape[1]),
    )

    def stats(moments: LayerStatistics) -> tuple[HeadStats, ...]:
        made = {
            "key": key_stats(weights, moments, channels or Channels.mixing(key.shape[1])),
            "value": value_stats(weights, moments),
        }
        return tuple(made[side] for side in sides)

    identity = LayerStatistics.identity(width)
    inner = torch.stack([weight_inner(projections[side]) for side in sides]).sum(0)
    return HeadFeatures(
        num_heads=len(key),
        cost=cost or WithinClusterError(inner),
        bound=lambda num_groups: 0.0,
        inner=inner,
        sides=stats(identity if moment is None else LayerStatistics(moment)),
        plain_sides=lambda: stats(identity),
    )


def random_heads(num_heads: int, seed: int = 0, sides: Sequence[str] = BOTH) -> HeadFeatures:
    """Heads without any structure, and text that is not white."""
    rows = normal(20, WIDTH + 1, seed=seed + 1)
    return heads_of(
        *normal(2, num_heads, HEAD_DIM, WIDTH, seed=seed), sides=sides, moment=rows.T @ rows / len(rows)
    )


def two_faced(text: Sequence[int], weights: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Heads that share the labels `text` in what they do on text and the labels `weights` in their weights.

    Half of the input hardly ever moves; there the weights are large and follow `weights`. Returns the heads,
    `[heads, HEAD_DIM, 2 WIDTH]`, and the moment.
    """
    seen, unseen = normal(2, len(text), HEAD_DIM, WIDTH, seed=4)
    heads = torch.cat([seen[list(text)], 5 * unseen[list(weights)]], dim=2)
    often = torch.cat([torch.ones(WIDTH), torch.full((WIDTH,), 1e-6), torch.ones(1)])
    return heads, often.double().diag()
