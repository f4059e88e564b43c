"""Cache types that are floating-point numbers: 16 bits, and 8 with or without a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        name: as its engine calls it.
        scaled: what has a scale in float32, by which its largest channel is 448: `head` for each head of each position,
            `tensor` for all that is given together, as transformers has it for each layer; else the scale is 1, as where
            an engine is given none, and what is larger is cut off.
    """

    name: str
    scaled: Literal["head", "tensor"] | None = None

    def nbytes(self, head_dim: int) -> float:
        """One for each channel, and the scale; one for a whole layer weighs nothing."""
        return head_dim + 4.0 * (self.scaled == "head")

    def stored(self, states: Float[Tensor, "*batch head_dim"]) -> Float[Tensor, "*batch head_dim"]:
        """Rounded to the nearest."""
        states = states.float()
        if self.scaled is None:
            return states.clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn).float()
        amplitude = states.abs().amax() if self.scaled == "tensor" else states.abs().amax(-1, keepdim=True)
        scale = (amplitude / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        return (states / scale).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn).float() * scale
