"""The algebra of `fold` on many groups of the same size at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gqakit.core.distances import Rotation
from gqakit.core.linalg import cholesky_ex, eigh, solve
from gqakit.core.rope import Channels
from gqakit.core.statistics import HeadStats
from gqakit.core.weighting import roots, weighted_gram

_TOLERANCE = 1e-5
"""Relative gain of a round of the alternation below which no further round is worth its time."""
_MAP_RIDGE = 1e-5
"""Ridge on `E[R s sᵀ Rᵀ]`, as a share of its mean eigenvalue. Maps are fitted to finite text, so a
direction in which the shared head hardly moves must not get huge entries on the strength of noise."""
_HEAD_RIDGE = 1e-8
"""Ridge on `N`, against singular metrics alone."""

Maps = tuple[Tensor, Tensor]
"""`combine` and `expand`, each `[groups, members, d, d]`."""


@dataclass(frozen=True)
class GroupBatch:
    """Statistics of several groups of `members` heads each.

    `gram` is `[groups, members · d, members · d]`; `rotation` (None where nothing turns) has tables that broadcast
    over members.
    """

    gram: Float[Tensor, "groups wide wide"]
    metric: Float[Tensor, "groups members d d"]
    channels: Channels
    rotation: Rotation | None

    @classmethod
    def of(cls, stats: HeadStats, groups: Sequence[Sequence[int]]) -> GroupBatch:
        """The groups with these heads, the same number in each."""
        index = torch.as_tensor([list(group) for group in groups])  # [groups, members]
        count, members = index.shape
        dim = stats.gram.shape[1]
        gram = torch.empty(count, members, dim, members * dim, dtype=stats.gram.dtype)
        for group, heads in zip(gram, index, strict=True):
            for rows, head in zip(group, heads, strict=True):
                rows.copy_(stats.gram[head].index_select(1, heads).flatten(1))  # [d, members · d]
        gram = gram.flatten(1, 2)  # rows and columns head by head
        rotation = _rotation(stats, index)
        rotation = None if rotation is None else rotation.to(gram.dtype)
        return cls(gram, stats.metric[index].to(gram.dtype), stats.channels, rotation)

    @property
    def members(self) -> int:
        """Heads in each group."""
        return self.metric.shape[1]

    @property
    def blocks(self) -> Float[Tensor, "groups members d members d"]:
        """The Gram matrix head by head."""
        d = self.metric.shape[-1]
        return self.gram.view(-1, self.members, d, self.members, d)

    def to(self, dtype: torch.dtype) -> GroupBatch:
        """The same in another precision."""
        rotation = None if self.rotation is None else self.rotation.to(dtype)
        return GroupBatch(self.gram.to(dtype), self.metric.to(dtype), self.channels, rotation)

    def energy(self) -> Float[Tensor, " groups"]:
        """What losing all heads of a group would cost."""
        own = self.blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)  # [groups, members, d, d]
        own = own if self.rotation is None else self.rotation.forward(own)
        return (own * self.metric.mT).sum((1, 2, 3))


def _rotation(stats: HeadStats, index: Tensor) -> Rotation | None:
    if not stats.channels.first:
        return None
    if stats.rotations is None:
        return Rotation.all_distances(stats.channels)
    return stats.rotations.select(index).mean(keepdim=True)  # tables [2, groups, 1, d/2, d/2]


def fold_pairwise(batch: GroupBatch) -> Maps:
    """The best maps that commute with every rotation: frequency pairs and free channels solved apart."""
    combine, expand = torch.zeros_like(batch.metric), torch.zeros_like(batch.metric)
    a, b, free = batch.channels.indices
    pair_combine, pair_expand = _fold_pairs(batch, a, b)
    for target, value in ((combine, pair_combine), (expand, pair_expand)):
        target[:, :, a, a], target[:, :, b, b] = value.real, value.real  # x + iy acts as [[x, −y], [y, x]]
        target[:, :, b, a], target[:, :, a, b] = value.imag, -value.imag
    if len(free):
        block = (slice(None), slice(None), free[:, None], free[None, :])
        combine[block], expand[block] = fold_free(batch, free)
    return combine, expand


def fold_free(batch: GroupBatch, free: Tensor) -> Maps:
    """The best maps on the channels `free`, which mix: `combine` and `expand`, each `[groups, members, f, f]`.

    `s = Uᵀ [M_h^{1/2} k_h]_h` and `B_h = M_h^{-1/2} U_h` with `U` the leading `f` eigenvectors of the stack's Gram matrix
    (Eckart and Young).
    """
    members, width = batch.members, len(free)
    gram = batch.blocks[:, :, free][..., free]  # [groups, members, f, members, f]
    root, inverse = roots(batch.metric[:, :, free[:, None], free[None, :]])
    _, vectors = eigh(weighted_gram(gram, root))
    leading = vectors[:, :, -width:].flip(2)  # [groups, members · f, rank], largest eigenvalue first
    leading = leading * _sign(leading)
    leading = leading.reshape(-1, members, width, width)  # [groups, members, f, rank]
    combine, expand = (root @ leading).mT, inverse @ leading
    return balanced(combine, expand, gram.reshape(-1, members * width, members * width))


def alternate(
    batch: GroupBatch, combine: Tensor, rounds: int, *, overshoot: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares for the maps given the shared head and for the shared head given the maps, in turn.

    `B_h = E[R k_h sᵀ Rᵀ] E[R s sᵀ Rᵀ]⁻¹` and `P_h = N⁻¹ E[Rᵀ B_hᵀ M_h R]`, `N = Σ_h E[Rᵀ B_hᵀ M_h B_h R]`. Stops when no
    group gains any more.

    Args:
        batch: the groups, with a rotation.
        combine: where to start, `[groups, members, d, d]`.
        rounds: at most.
        overshoot: how much further than the least squares each round goes, from the second on. 1 takes half the rounds to
            the same error; above it the rounds may run away.

    Returns:
        `combine`, `expand` and how much of each group's energy they explain, `[groups]`, up to the ridge.
    """
    rotation = batch.rotation
    assert rotation is not None
    eye = torch.eye(batch.metric.shape[-1], dtype=batch.metric.dtype)

    def solve_expand(combine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stacked = combine.mT.flatten(1, 2)  # [groups, members · d, d]
        cross = (batch.gram @ stacked).view_as(combine)  # E[k_h sᵀ], [groups, members, d, d]
        shared = rotation.forward((stacked.mT @ cross.flatten(1, 2))[:, None])[:, 0]  # [groups, d, d]
        shared = shared + _ridge(shared, _MAP_RIDGE) * eye
        cross = rotation.forward(cross)
        expand = _solve_each(shared, cross.mT).mT
        weighted = expand.mT @ batch.metric  # B_hᵀ M_h, [groups, members, d, d]
        return expand, weighted, (weighted.mT * cross).sum((1, 2, 3))

    expand, weighted, explained = solve_expand(combine)
    for turn in range(rounds):
        normal = rotation.backward((weighted @ expand).sum(1, keepdim=True))[:, 0]
        normal = normal + _ridge(normal, max(_HEAD_RIDGE, 8 * torch.finfo(normal.dtype).eps)) * eye
        last, combine = combine, _solve_each(normal, rotation.backward(weighted))
        if overshoot and turn:
            combine = combine + overshoot * (combine - last)
        before = explained
        expand, weighted, explained = solve_expand(combine)
        if bool((explained - before <= _TOLERANCE * explained).all()):
            break
    return combine, expand, explained


def _ridge(matrix: Tensor, share: float) -> Tensor:
    """`[groups, 1, 1]`: a share of the mean eigenvalue of each matrix."""
    return share * matrix.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)[:, None, None]


def _solve_each(matrix: Tensor, right: Tensor) -> Tensor:
    """`matrix⁻¹ right[m]` for `[groups, d, d]` and `[groups, members, d, d]`: one factorisation per group."""
    groups, members, d, _ = right.shape
    side_by_side = right.transpose(1, 2).reshape(groups, d, members * d)
    if matrix.dtype == torch.float32:  # symmetric and positive: in half the time
        factor, failed = cholesky_ex(matrix)
        if not failed.any():  # rounding may make the smallest eigenvalues negative
            found = torch.cholesky_solve(side_by_side, factor)
            return found.view(groups, d, members, d).transpose(1, 2)
    return solve(matrix, side_by_side).view(groups, d, members, d).transpose(1, 2)


def _fold_pairs(batch: GroupBatch, first: Tensor, second: Tensor) -> Maps:
    """The best maps on each frequency pair, as complex numbers `[groups, members, pairs]`."""
    blocks = batch.blocks

    def between(a: Tensor, b: Tensor) -> Tensor:  # [groups, pairs, members, members]
        return blocks[:, :, a, :, b].transpose(0, 1)

    real = between(first, first) + between(second, second)
    imaginary = between(second, first) - between(first, second)
    hermitian = torch.complex(real, imaginary)  # E[k_h conj(k_g)], [groups, pairs, members, members]
    energy = batch.metric.diagonal(dim1=2, dim2=3)
    root = ((energy[..., first] + energy[..., second]) / 2).clamp_min(0).sqrt().mT  # [groups, pairs, members]
    _, vectors = eigh(root[..., :, None] * hermitian * root[..., None, :])
    leading = vectors[..., -1]  # [groups, pairs, members]
    anchor = leading.gather(-1, leading.abs().argmax(-1, keepdim=True))
    leading = leading * (anchor.conj() / anchor.abs())  # eigenvectors made unique: the largest entry is real
    combine = leading.conj() * root
    expand = leading * torch.where(root > 0, 1 / root.clamp_min(1e-300), 0.0)
    length = torch.einsum("nph,nphg,npg->np", combine, hermitian, combine.conj()).real  # E|s|² of each pair
    target = hermitian.diagonal(dim1=2, dim2=3).real.mean(-1)
    scale = _safe_scale(target, length)[..., None]
    return (combine * scale).mT, (expand / scale).mT


def balanced(combine: Tensor, expand: Tensor, gram: Tensor) -> Maps:
    """The same merges with the shared head as long as its members are on average.

    Any invertible scale of the shared head may be undone in `expand`; this one keeps weights in the source's range.
    """
    stacked = combine.mT.flatten(1, 2)  # [groups, members · d, d]
    energy = (stacked * (gram @ stacked)).sum((1, 2))
    target = gram.diagonal(dim1=1, dim2=2).sum(-1) / combine.shape[1]
    scale = _safe_scale(target, energy)[:, None, None, None]
    return combine * scale, expand / scale


def _safe_scale(target: Tensor, energy: Tensor) -> Tensor:
    usable = (energy > 0) & (target > 0)
    return torch.where(usable, (target / energy.clamp_min(1e-300)).clamp_min(1e-300).sqrt(), 1.0)


def _sign(vectors: Tensor) -> Tensor:
    """+1 or -1 for each column, so that its entry of greatest magnitude is positive: eigenvectors made unique."""
    anchor = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))
    return torch.where(anchor < 0, -1.0, 1.0).to(vectors.dtype)
