"""Rotations of a head's channels by Hadamard matrices, which give every channel a like share of all."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


@lru_cache(maxsize=16)
def hadamard(size: int) -> Float[Tensor, "size size"]:
    """The normalised Hadamard matrix of a power of two, by Sylvester's doubling: symmetric and its own inverse."""
    if size < 1 or size & (size - 1):
        raise ValueError(f"{size} is no power of two")
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / size**0.5


def largest_power(width: int, most: int | None = None) -> int:
    """The largest power of two that divides a width, `most` at most."""
    power = width & -width
    return power if most is None else min(power, most)


def rotated(states: Float[Tensor, "*batch channels"], size: int) -> Float[Tensor, "*batch channels"]:
    """Each `size` channels that follow each other, multiplied by the Hadamard matrix."""
    matrix = hadamard(size).to(states)
    return (states.reshape(-1, size) @ matrix).reshape(states.shape)
