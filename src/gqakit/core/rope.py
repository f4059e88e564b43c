"""Which channels of a head may be mixed with which without a change of the model's function.

Value heads, and key heads without rotary embedding, may be mixed freely. Under rotary embedding a
linear map commutes with the position only if it acts inside each frequency pair as a complex
number. Between a projection and a normalisation of its output (q/k norm) nothing may be mixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Channels:
    """The structure of one head of width `head_dim`.

    `first[j]` and `second[j]` are the real and imaginary channel of frequency pair `j`; `free` are
    the channels that mix with each other at will; in a `locked` head no channel mixes with another.
    """

    head_dim: int
    first: tuple[int, ...] = ()
    second: tuple[int, ...] = ()
    free: tuple[int, ...] = ()
    locked: bool = False

    def __post_init__(self) -> None:
        if self.locked and (self.first or self.second or self.free):
            raise ValueError("a locked head has neither pairs nor free channels")
        channels = sorted(self.first + self.second + self.free)
        if not self.locked and channels != list(range(self.head_dim)):
            raise ValueError(f"channels {channels} do not cover 0..{self.head_dim - 1} once each")
        if len(self.first) != len(self.second):
            raise ValueError("a frequency pair has two channels")

    @cached_property
    def indices(self) -> tuple[Tensor, Tensor, Tensor]:
        """`first`, `second` and `free` as tensors to index with."""
        first, second, free = (
            torch.as_tensor(c, dtype=torch.long) for c in (self.first, self.second, self.free)
        )
        return first, second, free

    @classmethod
    def mixing(cls, head_dim: int) -> Channels:
        """All channels mix freely: values, and keys without rotary embedding."""
        return cls(head_dim, free=tuple(range(head_dim)))

    @classmethod
    def normalised(cls, head_dim: int) -> Channels:
        """A normalisation follows the projection: nothing mixes."""
        return cls(head_dim, locked=True)

    @classmethod
    def rotary(
        cls, head_dim: int, rotary_dim: int | None = None, layout: Literal["half", "interleaved"] = "half"
    ) -> Channels:
        """The first `rotary_dim` channels rotate in pairs, the others are free.

        `half` pairs channel `j` with `j + rotary_dim/2` (Llama, NeoX); `interleaved` pairs `2j` with `2j+1`.

        Raises:
            ValueError: when `rotary_dim` is odd or larger than the head.
        """
        width = head_dim if rotary_dim is None else rotary_dim
        if width % 2 or not 0 <= width <= head_dim:
            raise ValueError(f"rotary width {width} does not fit a head of {head_dim} channels")
        if layout == "half":
            first, second = tuple(range(width // 2)), tuple(range(width // 2, width))
        else:
            first, second = tuple(range(0, width, 2)), tuple(range(1, width, 2))
        return cls(head_dim, first, second, tuple(range(width, head_dim)))
