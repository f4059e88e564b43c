"""The four projections of one attention layer, cut into heads, biases riding along."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """A projection whose output is cut into heads: q, k or v.

    `weight` is `[heads, head_dim, width]`, acting on the layer's input; `bias` is `[heads, head_dim]` or None.
    """

    weight: Float[Tensor, "heads head_dim width"]
    bias: Float[Tensor, "heads head_dim"] | None = None

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return self.weight.shape[0]

    @property
    def head_dim(self) -> int:
        """Channels a head."""
        return self.weight.shape[1]

    def augmented(self) -> Float[Tensor, "heads head_dim augmented"]:
        """`W̃ = [W  b]`, acting on `x̃ = [x; 1]`; without a bias just `W`, acting on `x`."""
        if self.bias is None:
            return self.weight
        return torch.cat([self.weight, self.bias.unsqueeze(-1)], dim=-1)

    @classmethod
    def from_augmented(
        cls, augmented: Float[Tensor, "heads head_dim augmented"], has_bias: bool
    ) -> Projection:
        """The inverse of `augmented`."""
        if not has_bias:
            return cls(augmented)
        return cls(augmented[..., :-1], augmented[..., -1])

    def to(self, dtype: torch.dtype) -> Projection:
        """The same projection in another precision."""
        return Projection(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


@dataclass(frozen=True)
class AttentionWeights:
    """One attention layer. `output` is `[heads, width_out, head_dim]`: `W_O` cut into query heads.

    In a source layer query head `q` reads KV head `q // (query heads / KV heads)`. The bias of the output projection
    belongs to no head and is never touched, so it is not here.
    """

    query: Projection
    key: Projection
    value: Projection
    output: Float[Tensor, "heads width_out head_dim"]

    @property
    def num_heads(self) -> int:
        """Number of query heads."""
        return self.query.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Number of key heads; in a source layer value heads are as many."""
        return self.key.num_heads

    def to(self, dtype: torch.dtype) -> AttentionWeights:
        """The same layer in another precision."""
        return AttentionWeights(
            self.query.to(dtype), self.key.to(dtype), self.value.to(dtype), self.output.to(dtype)
        )
