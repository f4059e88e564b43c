"""`fold`: the best shared head, with a free linear map per member that costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from gqakit.core.channels import Channels
from gqakit.core.linalg import eigh, eigvalsh, solve
from gqakit.core.merging.base import HeadMerge, MergeRule, residual
from gqakit.core.merging.mean import Mean
from gqakit.core.moments import HeadStats


class Fold(MergeRule):
    """The best shared head of width `d`, in the metric of its readers.

    For members `k_h` with metric `M_h`, the shared head `s = Σ_h P_h k_h` and the maps `B_h` minimise
    `Σ_h E[e_hᵀ M_h e_h]`, `e_h = k_h − B_h s`. The maps go where the head is read: `W_Q[q] ← B_hᵀ W_Q[q]` for keys,
    `W_O[:,q] ← W_O[:,q] B_h` for values.

    *Without rotation* (values; keys of models with absolute positions) the solution is closed: with `U` the
    leading `d` eigenvectors of the Gram matrix of the stacked `M_h^{1/2} k_h`, `s = Uᵀ stack` and
    `B_h = M_h^{-1/2} U_h`.

    *With rotary embedding* a reader sees `R k_h` and `R s`, `R` the rotation by the distance, and the error is
    averaged over the distances where attention looks. Start: each frequency pair one complex channel, solved
    alone, which holds at every distance. From there `B` given `P` and `P` given `B` are least squares in turn,
    `B_h = E[R k_h sᵀ Rᵀ] E[R s sᵀ Rᵀ]⁻¹` and `P_h = N⁻¹ E[Rᵀ B_hᵀ M_h R]`, `N = Σ_h E[Rᵀ B_hᵀ M_h B_h R]`: pairs that turn
    slowly share what they have in common, which no map that commutes with rotation can. Without
    recorded distances the start is the solution.

    Mean and aligned are special cases: without distances the error is never larger than theirs, with them the
    alternation starts from a better place and ends below in practice. A locked head (q/k norm)
    has no free map: there the rule falls back to `mean` over heads of equal length.
    """

    name = "fold"
    summary = "best low-rank shared head, a linear map for each member folded into its readers"
    source = "gqakit"

    def on(self, channels: Channels) -> MergeRule:
        """`mean` for locked heads, else `fold`."""
        return Mean() if channels.locked else self

    def merge(self, stats: HeadStats) -> HeadMerge:
        """See the class."""
        if stats.channels.locked:
            return Mean().merge(stats)
        if not stats.channels.first:
            return HeadMerge(*_fold_free(stats, torch.arange(stats.channels.head_dim)))
        start = _fold_pairwise(stats)
        if stats.distances is None:
            return start
        combine, expand, _ = _alternate(stats, start, _ITERATIONS)
        merge = HeadMerge(*_balanced(combine, expand, stats.gram))
        return min(start, merge, key=lambda candidate: residual(stats, candidate))

    def score(self, stats: HeadStats) -> float:
        """The error: from eigenvalues alone where that is all it takes, after a few rounds where it takes many."""
        if stats.num_heads == 1:
            return 0.0
        if stats.channels.locked:
            return self.error(stats)
        if not stats.channels.first:
            root, _ = roots(stats.metric)
            spectrum = eigvalsh(weighted_gram(stats.gram, root))
            return float(spectrum[: -stats.gram.shape[1]].clamp_min(0).sum())
        if stats.distances is None:
            return self.error(stats)
        _, _, explained = _alternate(stats, _fold_pairwise(stats), _SCORE_ITERATIONS)
        return max(float(stats.energy().sum()) - explained, 0.0)


def _fold_pairwise(stats: HeadStats) -> HeadMerge:
    """The best maps that commute with every rotation: frequency pairs and free channels solved apart."""
    combine, expand = torch.zeros_like(stats.metric), torch.zeros_like(stats.metric)
    a, b = torch.as_tensor(stats.channels.first), torch.as_tensor(stats.channels.second)
    pair_combine, pair_expand = _fold_pairs(stats, a, b)
    for target, value in ((combine, pair_combine), (expand, pair_expand)):
        target[:, a, a], target[:, b, b] = value.real, value.real
        target[:, b, a], target[:, a, b] = value.imag, -value.imag
    if stats.channels.free:
        free = torch.as_tensor(stats.channels.free)
        block = (slice(None), free[:, None], free[None, :])
        combine[block], expand[block] = _fold_free(stats, free)
    return HeadMerge(combine, expand)


def _alternate(stats: HeadStats, start: HeadMerge, iterations: int) -> tuple[Tensor, Tensor, float]:
    """Least squares for the maps given the shared head and for the shared head given the maps, in turn.

    Returns `combine`, `expand` and how much of the energy they explain, up to the ridge.
    """
    rotation = stats.rotation
    assert rotation is not None
    eye = torch.eye(stats.gram.shape[1], dtype=stats.gram.dtype)

    def solve_expand(combine: Tensor) -> tuple[Tensor, float]:
        cross = torch.einsum("hagb,gcb->hac", stats.gram, combine)
        shared = rotation.forward(torch.einsum("hab,hbc->ac", combine, cross))
        shared = shared + _MAP_RIDGE * shared.diagonal().mean().clamp_min(1e-30) * eye
        seen = rotation.forward(cross)
        expand = solve(shared, seen.mT).mT
        return expand, float((expand @ seen.mT * stats.metric.mT).sum())

    combine = start.combine
    expand, explained = solve_expand(combine)
    for _ in range(iterations):
        weighted = expand.mT @ stats.metric
        normal = rotation.backward((weighted @ expand).sum(0))
        normal = normal + _HEAD_RIDGE * normal.diagonal().mean().clamp_min(1e-30) * eye
        combine = solve(normal, rotation.backward(weighted))
        before = explained
        expand, explained = solve_expand(combine)
        if explained - before <= _TOLERANCE * explained:
            break
    return combine, expand, explained


_ITERATIONS = 60
_SCORE_ITERATIONS = 4
_TOLERANCE = 1e-5
_MAP_RIDGE = 1e-5
_HEAD_RIDGE = 1e-8


def _fold_free(stats: HeadStats, free: Tensor) -> tuple[Tensor, Tensor]:
    """The rule on the channels `free`, which mix: `combine` and `expand`, each `[members, f, f]`."""
    members, width = stats.num_heads, len(free)
    gram = stats.gram[:, free][:, :, :, free]
    root, inverse = roots(stats.metric[:, free[:, None], free[None, :]])
    _, vectors = eigh(weighted_gram(gram, root))
    leading = vectors[:, -width:].flip(1).reshape(members, width, width)  # [members, f, rank]
    leading = leading * _sign(leading.flatten(0, 1))
    combine, expand = (root @ leading).mT, inverse @ leading
    return _balanced(combine, expand, gram)


def weighted_gram(gram: Tensor, root: Tensor) -> Tensor:
    """The Gram matrix of the stacked `M_h^{1/2} k_h`, `[members * f, members * f]`."""
    members, width = root.shape[:2]
    return torch.einsum("hab,hbgc,gdc->hagd", root, gram, root).reshape(members * width, -1)


def _fold_pairs(stats: HeadStats, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The rule on each frequency pair: complex `combine` and `expand`, each `[members, pairs]`."""
    gram = stats.gram
    same = gram[:, first, :, first] + gram[:, second, :, second]  # [pairs, members, members]
    turn = gram[:, second, :, first] - gram[:, first, :, second]
    hermitian = torch.complex(same, turn)  # E[k_h conj(k_g)]
    energy = stats.metric.diagonal(dim1=1, dim2=2)
    root = ((energy[:, first] + energy[:, second]) / 2).clamp_min(0).sqrt().T  # [pairs, members]
    _, vectors = eigh(root[:, :, None] * hermitian * root[:, None, :])
    leading = vectors[:, :, -1]  # [pairs, members]
    anchor = leading.gather(1, leading.abs().argmax(1, keepdim=True))
    leading = leading * (anchor.conj() / anchor.abs())
    combine = leading.conj() * root
    expand = leading * torch.where(root > 0, 1 / root.clamp_min(1e-300), 0.0)
    energy = torch.einsum("ph,phg,pg->p", combine, hermitian, combine.conj()).real
    target = hermitian.diagonal(dim1=1, dim2=2).real.mean(1)
    scale = _safe_scale(target, energy)[:, None]
    return (combine * scale).T, (expand / scale).T


def _balanced(combine: Tensor, expand: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """The same merge with the shared head as long as its members are on average.

    Any invertible scale of `s` may be undone in `expand`; this one keeps weights in the source's range.
    """
    energy = torch.einsum("hxa,hagb,gxb->", combine, gram, combine)
    target = gram.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).sum(-1).mean()
    scale = _safe_scale(target, energy)
    return combine * scale, expand / scale


def _safe_scale(target: Tensor, energy: Tensor) -> Tensor:
    usable = (energy > 0) & (target > 0)
    return torch.where(usable, (target / energy.clamp_min(1e-300)).clamp_min(1e-300).sqrt(), 1.0)


def roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """`M^{1/2}` and its pseudo-inverse for each symmetric `[f, f]`."""
    values, vectors = eigh(metric)
    values = values.clamp_min(0)
    floor = values.amax(-1, keepdim=True) * 1e-12
    root = values.sqrt()
    inverse = torch.where(values > floor, 1 / root.clamp_min(1e-300), 0.0)
    return (vectors * root[:, None]) @ vectors.mT, (vectors * inverse[:, None]) @ vectors.mT


def _sign(vectors: Tensor) -> Tensor:
    """+1 or -1 a column, so that its entry of greatest magnitude is positive: eigenvectors made unique."""
    anchor = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return torch.where(anchor < 0, -1.0, 1.0).to(vectors.dtype).squeeze(0)
