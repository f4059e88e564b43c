"""What a cache type is, and a pair of them: one for keys, one for values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gqakit.core.cache_types.hadamard import largest_power, rotated


class CacheType(ABC):
    """How a cache holds one head of one position, `[..., head_dim]`.

    Attributes:
        name: as engines and the command line call it.
        block: channels that share a scale; a head's width must be a multiple of it.
    """

    name: str
    block: int = 1

    @abstractmethod
    def nbytes(self, head_dim: int) -> float:
        """Bytes of one head of one position, scales included."""

    @abstractmethod
    def stored(self, states: Float[Tensor, "*batch head_dim"]) -> Float[Tensor, "*batch head_dim"]:
        """What comes back out of the cache, in float32."""

    def problem(self, head_dim: int) -> str | None:
        """Why a head of this width cannot be held; None where it can."""
        if head_dim % self.block == 0:
            return None
        return f"{self.name} rounds blocks of {self.block} channels, and a head has {head_dim}"

    def bits(self, head_dim: int) -> float:
        """Bits for each channel, scales included."""
        return 8 * self.nbytes(head_dim) / head_dim

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, repr=False)
class Rotated(CacheType):
    """A type whose heads are rotated by a normalised Hadamard matrix before they are rounded, and back.

    Attributes:
        plain: what rounds.
        most: channels that are rotated together at most; all that a power of two divides by default.

    As llama.cpp does with its quantised types (`-ctk`, `-ctv`) where a head's width is a multiple of 64; of values it
    rotates 64 channels at a time.
    """

    plain: CacheType
    most: int | None = None

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the plain type and `+h`."""
        return f"{self.plain.name}+h"

    @property
    def block(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the plain type."""
        return self.plain.block

    def nbytes(self, head_dim: int) -> float:
        """Those of the plain type: a rotation is not kept."""
        return self.plain.nbytes(head_dim)

    def problem(self, head_dim: int) -> str | None:
        """That of the plain type, or a width that no power of two divides."""
        if head_dim % 2:
            return (
                f"{self.name} rotates by a Hadamard matrix, which a head of {head_dim} channels has none of"
            )
        return self.plain.problem(head_dim)

    def stored(self, states: Float[Tensor, "*batch head_dim"]) -> Float[Tensor, "*batch head_dim"]:
        """Rounded in the rotated basis."""
        size = largest_power(states.shape[-1], self.most)
        return rotated(self.plain.stored(rotated(states.float(), size)), size)


@dataclass(frozen=True)
class CachePair:
    """The types of keys and of values."""

    key: CacheType
    value: CacheType

    @property
    def name(self) -> str:
        """As the command line takes it: `q4_0`, or `q8_0,q4_0` where they differ."""
        same = self.key.name == self.value.name
        return self.key.name if same else f"{self.key.name},{self.value.name}"

    def problems(self, head_dim: int) -> Iterator[str]:
        """Why a head of this width cannot be held."""
        for problem in dict.fromkeys((self.key.problem(head_dim), self.value.problem(head_dim))):
            if problem is not None:
                yield problem

    def nbytes(self, key_heads: int, value_heads: int, head_dim: int) -> float:
        """Bytes for one position of these heads."""
        return key_heads * self.key.nbytes(head_dim) + value_heads * self.value.nbytes(head_dim)

    def stored(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values as they come back out of the cache, in the precision that they came in.

        The gradient goes straight through: it is that of the states that went in (Bengio et al. 2013, 1308.3432).
        """
        return _through(key, self.key), _through(value, self.value)


def _through(states: Tensor, kind: CacheType) -> Tensor:
    with torch.no_grad():
        held = kind.stored(states.detach()).to(states.dtype)
    return states + (held - states).detach() if states.requires_grad else held
