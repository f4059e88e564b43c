"""Bases of cached heads: invertible maps that change what is cached, and nothing of what the model computes.

A value head may be mapped by any invertible `B`: `W_V ← B W_V` and `W_O[:,q] ← W_O[:,q] B⁻¹` for each query head `q` that
reads it. A key head by any `A` that commutes with the position embedding, `W_K ← A W_K` and `W_Q[q] ← A⁻ᵀ W_Q[q]`: under
rotary embedding a scale and a rotation for each frequency pair. Biases ride along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.linalg import inv


@dataclass(frozen=True)
class Basis:
    """The maps of one layer's cached heads; None leaves keys, or values, as they are."""

    key: Float[Tensor, "key_heads head_dim head_dim"] | None
    value: Float[Tensor, "value_heads head_dim head_dim"] | None


@dataclass(frozen=True)
class Readers:
    """For each query head, in the order of the weights, the key head and the value head that it reads."""

    key: Sequence[int]
    value: Sequence[int]


def rebased(weights: AttentionWeights, readers: Readers, basis: Basis) -> AttentionWeights:
    """A layer whose caches hold heads in another basis; it computes what it did, but for rounding.

    Worked out in float64, and rounded once to the precision of the weights.
    """
    query, key, value, output = weights.query, weights.key, weights.value, weights.output
    if basis.key is not None:
        maps = basis.key.double()
        undo = inv(maps).mT[list(readers.key)]  # A⁻ᵀ, [heads, d, d]
        key, query = _mapped(maps, key), _mapped(undo, query)
    if basis.value is not None:
        maps = basis.value.double()
        undo = inv(maps)[list(readers.value)]  # B⁻¹, [heads, d, d]
        value = _mapped(maps, value)
        output = (output.double() @ undo).to(output.dtype)  # [heads, width, d]
    return replace(weights, query=query, key=key, value=value, output=output)


def _mapped(maps: Tensor, projection: Projection) -> Projection:
    rows = maps @ projection.augmented().double()  # [heads, d, width (+ 1)]
    return projection.with_rows(rows.to(projection.weight.dtype))
