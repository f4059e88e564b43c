"""Cache types that are floating-point numbers: 16 bits, and 8 with or without a scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gqakit.core.cache_types.base import CacheType

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True, repr=False)
class Half(CacheType):
    """16 bits: what engines cache by default."""

    name: str
    dtype: torch.dtype

    def nbytes(self, head_dim: int) -> float:
        """Two for each channel."""
        return 2.0 * head_dim

    def stored(self, states: Float[Tensor, "*batch head_dim"]) -> Float[Tensor, "*batch head_dim"]:
        """Rounded to the nearest."""
        return states.to(self.dtype).float()


@dataclass(frozen=True, repr=False)
class Float8(CacheType):
    """8 bits, e4m3: 4 of exponent and 3 of mantissa, up to 448.

    Attributes:
        scaled: each head of each position has a scale of its own, in float32, by which its largest channel is 448;
            else the scale is 1, as where an engine is given none, and what is larger is cut off.
    """

    scaled: bool

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As vLLM calls it."""
        return "fp8_per_token_head" if self.scaled else "fp8"

    def nbytes(self, head_dim: int) -> float:
        """One for each channel, and the scale."""
        return head_dim + 4.0 * self.scaled

    def stored(self, states: Float[Tensor, "*batch head_dim"]) -> Float[Tensor, "*batch head_dim"]:
        """Rounded to the nearest."""
        states = states.float()
        if not self.scaled:
            return states.clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn).float()
        scale = (states.abs().amax(-1, keepdim=True) / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        return (states / scale).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn).float() * scale
