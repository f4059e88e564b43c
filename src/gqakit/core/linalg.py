"""The decompositions that merging needs, with types (torch leaves `torch.linalg` untyped)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

_linalg = cast(Any, torch.linalg)


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors, in columns, of Hermitian `[..., n, n]`."""
    values, vectors = _linalg.eigh(matrix)
    return values, vectors


def eigvalsh(matrix: Tensor) -> Tensor:
    """Eigenvalues alone, ascending, of Hermitian `[..., n, n]`."""
    return _linalg.eigvalsh(matrix)


def polar(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to each `[..., n, n]`: `U Vᵀ` of its singular value decomposition."""
    left, _, right = _linalg.svd(matrix)
    return left @ right


def svdvals(matrix: Tensor) -> Tensor:
    """Singular values alone, descending, of `[..., n, m]`."""
    return _linalg.svdvals(matrix)


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """`X` with `matrix @ X = right`, for `[..., n, n]` and `[..., n, m]`."""
    return _linalg.solve(matrix, right)
