"""The four projections of one attention layer, cut into heads, each bias as one more column of its weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """A projection whose output is cut into heads: q, k or v.

    `weight` is `[heads, head_dim, width]`, acting on the layer's input; `bias` is `[heads, head_dim]` or None.
    `gain` is there where a normalisation follows that has a factor of its own for each channel of each head;
    `each_alone` where it takes the mean square of each head by itself, not of all heads together.
    """

    weight: Float[Tensor, "heads head_dim width"]
    bias: Float[Tensor, "heads head_dim"] | None = None
    gain: Float[Tensor, "heads head_dim"] | None = None
    each_alone: bool = False

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return self.weight.shape[0]

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.weight.shape[1]

    def augmented(self) -> Float[Tensor, "heads head_dim augmented"]:
        """`W̃ = [W  b]`, acting on `x̃ = [x; 1]`; without a bias just `W`, acting on `x`."""
        if self.bias is None:
            return self.weight
        return torch.cat([self.weight, self.bias.unsqueeze(-1)], dim=-1)

    def delivered(self) -> Float[Tensor, "heads head_dim augmented"]:
        """`W̃` with the gains applied: what heads deliver, but for the length that a normalisation takes out."""
        rows = self.augmented()
        return rows if self.gain is None else rows * self.gain.unsqueeze(-1)

    @classmethod
    def from_augmented(
        cls,
        augmented: Float[Tensor, "heads head_dim augmented"],
        has_bias: bool,
        gain: Float[Tensor, "heads head_dim"] | None = None,
        each_alone: bool = False,
    ) -> Projection:
        """The inverse of `augmented`."""
        if not has_bias:
            return cls(augmented, None, gain, each_alone)
        return cls(augmented[..., :-1], augmented[..., -1], gain, each_alone)

    def with_rows(self, augmented: Float[Tensor, "heads head_dim augmented"]) -> Projection:
        """The same with other weights and biases, as `augmented` has them."""
        return Projection.from_augmented(augmented, self.bias is not None, self.gain, self.each_alone)

    def select(self, heads: Tensor) -> Projection:
        """Some of the heads, in the order of `heads`."""
        return self._each(lambda part: part[heads])

    def to(self, dtype: torch.dtype) -> Projection:
        """The same projection in another precision."""
        return self._each(lambda part: part.to(dtype))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Projection:
        bias, gain = (None if part is None else change(part) for part in (self.bias, self.gain))
        return replace(self, weight=change(self.weight), bias=bias, gain=gain)


@dataclass(frozen=True)
class NormMaps:
    """What acts on each head behind the normalisation of keys and of queries, before the position embedding.

    `key[h] k̂_h` adds up over the heads that share a cached one, and `query[q] q̂_q` reads it.
    """

    key: Float[Tensor, "projected_heads head_dim head_dim"]
    query: Float[Tensor, "heads head_dim head_dim"]


@dataclass(frozen=True)
class AttentionWeights:
    """One attention layer. `output` is `[heads, width_out, head_dim]`: `W_O` cut into query heads.

    In a source layer query head `q` reads KV head `q // (query heads / KV heads)`. The bias of the output projection
    belongs to no head and is never touched, so it is not here. Where keys are merged behind a normalisation, `maps` does
    it, and `key` is the source's. `sinks` is for each query head a score beside those of the keys, which takes weight and
    reads no value.
    """

    query: Projection
    key: Projection
    value: Projection
    output: Float[Tensor, "heads width_out head_dim"]
    maps: NormMaps | None = None
    sinks: Float[Tensor, " heads"] | None = None

    @property
    def num_heads(self) -> int:
        """Number of query heads."""
        return self.query.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Number of key heads; a source layer has as many value heads."""
        return self.key.num_heads

    def to(self, dtype: torch.dtype) -> AttentionWeights:
        """The same layer in another precision."""
        query, key, value = (part.to(dtype) for part in (self.query, self.key, self.value))
        maps = None if self.maps is None else NormMaps(self.maps.key.to(dtype), self.maps.query.to(dtype))
        sinks = None if self.sinks is None else self.sinks.to(dtype)
        return AttentionWeights(query, key, value, self.output.to(dtype), maps, sinks)
