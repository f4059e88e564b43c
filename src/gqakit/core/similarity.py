"""How alike two heads are, from the inner products between their channels alone.

Each function takes the `HeadStats` of the key heads or of the value heads and returns a symmetric matrix over pairs of
heads, at most 1. Keys are compared before rotation: a turn that is the same for both changes no inner product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gqakit.core.linalg import svdvals
from gqakit.core.rope import Channels
from gqakit.core.statistics import HeadStats


def channel_similarity(stats: HeadStats) -> Float[Tensor, "heads heads"]:
    """`½ [mean_i max_j cos(A_i, B_j) + mean_i max_j cos(B_i, A_j)]`, `A_i` channel `i` of head `A` over tokens.

    Source: AsymGQA, arXiv 2406.14963. The cosine is that of the channels as vectors over all calibration tokens,
    `E[a_i b_j] / √(E[a_i²] E[b_j²])`. A channel that is always 0 resembles nothing (the paper leaves it undefined).

    Raises:
        ValueError: when the statistics are not finite.
    """
    own = _energies(stats).double()  # [heads, head_dim]
    scale = torch.where(own > 0, own.clamp_min(_TINY).rsqrt(), 0.0)
    one_way = torch.empty(stats.num_heads, stats.num_heads, dtype=torch.float64)
    for head in range(stats.num_heads):  # one row of blocks at a time: never a second matrix of all channels
        cosine = stats.gram[head].double() * scale[head][:, None, None] * scale
        one_way[head] = cosine.amax(2).mean(0)
    return _alike((one_way + one_way.T) / 2)


def aligned_similarity(stats: HeadStats) -> Float[Tensor, "heads heads"]:
    """`max_R E[k_h · R k_g] / √(E‖k_h‖² E‖k_g‖²)` over the turns `R` that the query heads of head `g` can undo.

    That is 1 exactly where one head is a turned and rescaled copy of the other.
    Source: Align Attention Heads Before Merging Them, arXiv 2412.20677, which turns stored activations; the maximum
    follows from second moments as well.

    Raises:
        ValueError: when the statistics are not finite.
    """
    length = _energies(stats).double().sum(1).clamp_min(_TINY).sqrt()
    agreed = torch.zeros(stats.num_heads, stats.num_heads, dtype=torch.float64)
    for head in range(stats.num_heads - 1):
        others = stats.gram[head, :, head + 1 :].movedim(1, 0).double()  # E[k_h k_gᵀ] for the heads after it
        agreed[head, head + 1 :] = best_agreement(others, stats.channels)
    return _alike((agreed + agreed.T) / length[:, None] / length)


def best_agreement(
    cross: Float[Tensor, "*batch head_dim head_dim"], channels: Channels
) -> Float[Tensor, "*batch"]:
    """`max_R E[a · R b]` over the allowed turns `R` of `b`, for `cross = E[a bᵀ]`.

    The sum of singular values over free channels, of complex moduli over frequency pairs; the trace where a head is
    locked. It is what `nearest_turn` attains, without working out the turn, which takes three times as long.
    """
    if channels.locked:
        return cross.diagonal(dim1=-2, dim2=-1).sum(-1)
    first, second, free = channels.indices
    real = cross[..., first, first] + cross[..., second, second]
    imaginary = cross[..., second, first] - cross[..., first, second]
    total = torch.hypot(real, imaginary).sum(-1)
    if len(free):
        total = total + svdvals(cross[..., free[:, None], free]).sum(-1)
    return total


def flat_inner(sides: Sequence[HeadStats]) -> Float[Tensor, "heads heads"]:
    """`Σ_sides E[k_h · k_g] / mean_h E‖k_h‖²`: inner products of the heads flattened, `W̃ C^{1/2}`, sides on top of
    each other.

    Each side is scaled to unit mean energy first, or the one with the larger numbers would decide alone.

    Raises:
        ValueError: when the statistics are not finite.
    """
    total = torch.zeros(sides[0].num_heads, sides[0].num_heads, dtype=torch.float64)
    for stats in sides:
        mean = _energies(stats).double().sum(1).mean()
        inner = torch.einsum("haga->hg", stats.gram).double()  # E[k_h · k_g]: channel `a` with channel `a`
        total += inner / mean.clamp_min(_TINY)
    return total


def averaged(
    similarity: Callable[[HeadStats], Float[Tensor, "heads heads"]], sides: Sequence[HeadStats]
) -> Float[Tensor, "heads heads"]:
    """The similarity averaged over keys and values, or over the one side that is given."""
    return torch.stack([similarity(stats) for stats in sides]).mean(0)


_TINY = 1e-300
"""Keeps a division by the energy of heads that are 0 finite; far below any energy that is not."""


def _energies(stats: HeadStats) -> Float[Tensor, "heads head_dim"]:
    """`E[k_{h,i}²]` of every channel."""
    if not bool(torch.isfinite(stats.gram).all()):
        raise ValueError("inner products between heads are not finite, so no similarity follows from them")
    return stats.own.diagonal(dim1=1, dim2=2)


def _alike(similarity: Float[Tensor, "heads heads"]) -> Float[Tensor, "heads heads"]:
    """Within -1 and 1 whatever rounding did, and 1 for each head with itself."""
    return similarity.clamp(-1.0, 1.0).fill_diagonal_(1.0)
