"""Cache types that round blocks of channels to integers with a scale in 16 bits: those of engines, and others for study.

llama.cpp's compute in float32 what ggml's reference functions compute (`quantize_row_*_ref`, `dequantize_row_*`), rounding
mode and order of operations included, so that what comes back is the same to the bit.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gqakit.core.cache_types.base import CacheType

SCALE_BYTES = 2


class Blocks(CacheType):
    """Blocks of channels with a scale, and perhaps a smallest value, in 16 bits."""

    scales: int = 1
    """Numbers in 16 bits for each block."""
    width: int
    """Bits of each channel."""

    def nbytes(self, head_dim: int) -> float:
        """Integers and scales."""
        return head_dim * self.width / 8 + head_dim / self.block * self.scales * SCALE_BYTES

    def stored(self, states: Float[Tensor, "*batch head_dim"]) -> Float[Tensor, "*batch head_dim"]:
        """Rounded block by block."""
        blocks = states.float().reshape(*states.shape[:-1], -1, self.block)  # [..., d / block, block]
        return self.rounded(blocks).flatten(-2)

    @abstractmethod
    def rounded(self, blocks: Float[Tensor, "*batch block"]) -> Float[Tensor, "*batch block"]:
        """Blocks as they come back."""


@dataclass(frozen=True, repr=False)
class Symmetric(Blocks):
    """`q4_0` and its like: integers `-2^(b-1)` to `2^(b-1) - 1`, the value of largest magnitude being the lowest."""

    name: str
    width: int
    block: int = 32

    def rounded(self, blocks: Float[Tensor, "*batch block"]) -> Float[Tensor, "*batch block"]:
        """See the class."""
        half = 2 ** (self.width - 1)
        scale = _largest(blocks) / -half
        levels = (blocks * _inverse(scale) + (half + 0.5)).trunc().clamp(0, 2 * half - 1)
        return (levels - half) * _half(scale)


@dataclass(frozen=True, repr=False)
class Bytes(Blocks):
    """`q8_0`: integers -127 to 127, rounded to the nearest, halves away from zero."""

    name: str = "q8_0"
    width: int = 8
    block: int = 32

    def rounded(self, blocks: Float[Tensor, "*batch block"]) -> Float[Tensor, "*batch block"]:
        """See the class."""
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        exact = blocks * _inverse(scale)
        # By the fraction: adding a half first would round the largest number below a half up.
        whole = exact.abs().floor()
        levels = exact.sign() * (whole + (2 * (exact.abs() - whole)).floor())
        return levels * _half(scale)


@dataclass(frozen=True, repr=False)
class Ranged(Blocks):
    """`q4_1` and its like: integers 0 to `2^b - 1` between a block's smallest and largest value."""

    name: str
    width: int
    block: int = 32
    scales: int = 2

    def rounded(self, blocks: Float[Tensor, "*batch block"]) -> Float[Tensor, "*batch block"]:
        """See the class."""
        least, most = blocks.aminmax(dim=-1, keepdim=True)
        scale = (most - least) / (2**self.width - 1)
        levels = ((blocks - least) * _inverse(scale) + 0.5).trunc().clamp(0, 2**self.width - 1)
        return levels * _half(scale) + _half(least)


@dataclass(frozen=True, repr=False)
class Quanto(Blocks):
    """optimum-quanto's: integers 0 to `2^b - 1` between a block's smallest and largest value.

    Computed in the precision of the states, and scale and smallest value are kept in it: 16 bits where a model is served.
    Its blocks run over the channels of a head, so that what one position is rounded to depends on no other.
    """

    name: str
    width: int
    block: int
    scales: int = 2

    def stored(self, states: Float[Tensor, "*batch head_dim"]) -> Float[Tensor, "*batch head_dim"]:
        """Rounded block by block, in the precision of the states."""
        return self.rounded(states.reshape(*states.shape[:-1], -1, self.block)).flatten(-2)

    def rounded(self, blocks: Float[Tensor, "*batch block"]) -> Float[Tensor, "*batch block"]:
        """See the class."""
        least, most = blocks.aminmax(dim=-1, keepdim=True)
        scale = (most - least) / (2**self.width - 1)
        levels = torch.where(scale == 0, 0, (blocks - least) / scale).round().clamp(0, 2**self.width - 1)
        return levels * scale + least


_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True, repr=False)
class Levels(Blocks):
    """`iq4_nl`: one of 16 levels, denser about zero, times a scale that least squares give.

    The levels are chosen for the scale that takes the largest value to the lowest of them; the scale that is kept
    then minimises the error of these, each weighed by the square of what it stands for.
    """

    name: str = "iq4_nl"
    width: int = 4
    block: int = 32

    def rounded(self, blocks: Float[Tensor, "*batch block"]) -> Float[Tensor, "*batch block"]:
        """See the class."""
        table = torch.tensor(_LEVELS, dtype=torch.float32, device=blocks.device)
        largest = _largest(blocks)
        exact = (blocks * _inverse(largest / _LEVELS[0])).contiguous()
        above = torch.searchsorted(table, exact, right=True).clamp(1, len(_LEVELS) - 1)
        nearer_below = exact - table[above - 1] < table[above] - exact
        levels = table[torch.where(nearer_below, above - 1, above)]
        weight = blocks.square()
        scale = (weight * levels * blocks).sum(-1, keepdim=True) / (weight * levels * levels).sum(
            -1, keepdim=True
        )
        scale = torch.where(largest.abs() < _NOTHING, torch.zeros_like(scale), scale)
        return levels * _half(scale)


_NOTHING = 1e-15
"""A block of smaller values is zero to `iq4_nl`."""


def _largest(blocks: Tensor) -> Tensor:
    """The value of largest magnitude of each block, with its sign; the first of several."""
    return blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)


def _half(scale: Tensor) -> Tensor:
    """As it is kept, in 16 bits."""
    return scale.to(torch.float16).float()
