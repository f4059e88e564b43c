"""The decompositions that merging needs, with types (torch leaves `torch.linalg` untyped)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

_linalg = cast(Any, torch.linalg)

eigh: Callable[[Tensor], tuple[Tensor, Tensor]] = _linalg.eigh
"""Eigenvalues, ascending, and eigenvectors, in columns, of Hermitian `[..., n, n]`."""
eigvalsh: Callable[[Tensor], Tensor] = _linalg.eigvalsh
"""Eigenvalues alone, ascending, of Hermitian `[..., n, n]`."""
cholesky_ex: Callable[[Tensor], tuple[Tensor, Tensor]] = _linalg.cholesky_ex
"""The lower Cholesky factor of `[..., n, n]`, and for each matrix 0 where it has one."""
svdvals: Callable[[Tensor], Tensor] = _linalg.svdvals
"""Singular values alone, descending, of `[..., n, m]`."""
inv: Callable[[Tensor], Tensor] = _linalg.inv
"""The inverse of `[..., n, n]`."""
svd: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] = _linalg.svd
"""`U`, singular values, descending, and `Vᵀ` of `[..., n, m]`."""
solve: Callable[[Tensor, Tensor], Tensor] = _linalg.solve
"""`X` with `matrix @ X = right`, for `[..., n, n]` and `[..., n, m]`."""


def polar(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to each `[..., n, n]`: `U Vᵀ` of its singular value decomposition."""
    left, _, right = _linalg.svd(matrix)
    return left @ right


def leading_sum(gram: Tensor, rank: int) -> float:
    """The sum of the `rank` largest eigenvalues of a large positive semidefinite `[n, n]`, nearly.

    Subspace iteration with Chebyshev polynomials (Saad, Numerical Methods for Large Eigenvalue Problems, 5.3), from a
    start that is the same each time. What is still missing after `_ROUNDS` falls like the inverse square of the rounds,
    which makes it about twice the last gain; that is added. Tests hold the sum of all other eigenvalues to 1 part in 500.
    """
    generator = torch.Generator().manual_seed(0)
    basis = gram @ torch.randn(len(gram), rank, generator=generator, dtype=gram.dtype)
    eye = torch.eye(rank, dtype=gram.dtype)
    before, middle, gains = torch.zeros_like(basis), 0.0, [0.0]
    for turn in range(_ROUNDS):
        product = gram @ basis  # [n, rank]
        inner = basis.mT @ product
        inner = (inner + inner.mT) / 2 + _RIDGE * inner.diagonal().mean() * eye
        scale = _whitening(inner)  # makes `gram^{1/2} basis` orthonormal
        product, basis, before = product @ scale, basis @ scale, before @ scale
        ritz = product.mT @ product
        gains.append(float(ritz.diagonal().double().sum()))
        if turn == _PLAIN - 1:  # the eigenvalues that are not wanted lie below the smallest of these
            middle = float(eigvalsh(ritz)[0]) / 2
        weight = 0.0 if turn < _PLAIN else middle**2 / (2 if turn == _PLAIN else 4)
        before, basis = basis, product - middle * basis - weight * before
    return gains[-1] + 2 * (gains[-1] - gains[-2])


def _whitening(inner: Tensor) -> Tensor:
    """`W` with `Wᵀ inner W = 1`, for symmetric `[n, n]`; smaller in directions that have nothing."""
    factor, failed = cholesky_ex(inner)
    if not failed:
        return inv(factor).mT
    values, vectors = eigh(inner)  # of a lower rank, by more than rounding hides
    return vectors * values.clamp_min(max(_RIDGE * float(values[-1]), 1e-30)).rsqrt()


_ROUNDS = 6
_PLAIN = 2
"""Rounds of `leading_sum`, and how many of them go before anything is known of the eigenvalues."""
_RIDGE = 1e-6
"""Where the matrix has a lower rank than is asked for."""
