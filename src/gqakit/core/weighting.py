"""Errors of heads made plain lengths: the square roots of metrics, and Gram matrices of heads weighted by them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gqakit.core.linalg import eigh


def weighted_gram(
    gram: Float[Tensor, "*groups members d members d"], root: Float[Tensor, "*groups members d d"]
) -> Float[Tensor, "*groups wide wide"]:
    """The Gram matrix of the stacked `root[h] k_h`."""
    weighted = torch.einsum("...hab,...hbgc,...gdc->...hagd", root, gram, root)
    return weighted.flatten(-2).flatten(-3, -2)


def roots(metric: Float[Tensor, "*heads d d"]) -> tuple[Tensor, Tensor]:
    """`M^{1/2}` and its pseudo-inverse for each symmetric matrix."""
    values, vectors = eigh(metric)
    values = values.clamp_min(0)
    floor = values.amax(-1, keepdim=True) * 1e-12  # below it an eigenvalue is rounding: no query reads there
    root = values.sqrt()
    inverse = torch.where(values > floor, 1 / root.clamp_min(1e-300), 0.0)
    return (vectors * root[..., None, :]) @ vectors.mT, (vectors * inverse[..., None, :]) @ vectors.mT
