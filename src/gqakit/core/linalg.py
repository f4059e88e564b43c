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
