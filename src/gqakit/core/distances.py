"""Rotary embedding, averaged over the distances at which attention really looks.

A query at position `i` reads a key at position `j` through `qᵀ R k` with `R` the rotation by the distance
`i − j`. What a linear map on the key's channels costs therefore depends on the distances that carry attention.
`Rotation` holds the averages that this takes; a map that acts alike at all those distances need not commute
with rotation at every other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from gqakit.core.rope import Channels

TAIL = 0.2
"""Share of the weight that goes to distances beyond the recorded window.

Calibration windows are far shorter than the contexts that a model is used at, and maps fitted to the window alone decay
at longer ones. SmolLM2 with 2/3 of its KV heads has a KL to the source of 0.207 inside the window (0.204 without this) and
of 0.242 at four times it (0.306 without); docs/results/main-job.md.
"""
REACH = 4
"""How far that share reaches, in windows: calibrated on 512 tokens, maps are made to hold to 2,048."""


@dataclass(frozen=True)
class Rotation:
    """`X ↦ E[R X Rᵀ]` over distances, for `[..., d, d]` matrices between the channels of two heads.

    With `c`, `s` the cosine and sine of each channel's angle, `R = diag(c) + diag(s) J` where `J` turns a
    frequency pair by a right angle, so four tables of products between channels say it all. The first three
    are linear in the weights of the distances: those of several heads may be stacked and averaged.
    """

    cos_cos: Float[Tensor, "*heads d d"]
    sin_sin: Float[Tensor, "*heads d d"]
    sin_cos: Float[Tensor, "*heads d d"]
    quarter: Float[Tensor, "d d"]

    @classmethod
    def over(
        cls,
        distances: Float[Tensor, "*heads window"],
        frequencies: Float[Tensor, " pairs"],
        channels: Channels,
    ) -> Rotation:
        """The average for attention that falls on distance `t` with weight `distances[..., t]`.

        Args:
            distances: non-negative, any sum above 0; of one head or of several.
            frequencies: radians per position of each pair.
            channels: which channels form the pairs; free channels do not turn.
        """
        weight = (distances.double() / distances.double().sum(-1, keepdim=True))[..., None]
        position = torch.arange(distances.shape[-1], dtype=torch.float64)
        angle = -position[:, None] * _rates(frequencies, channels)  # [window, d]
        cos, sin = angle.cos(), angle.sin()
        return cls(
            cos.T @ (weight * cos), sin.T @ (weight * sin), sin.T @ (weight * cos), _quarter_turn(channels)
        )

    @classmethod
    def all_distances(cls, channels: Channels) -> Rotation:
        """The average over ever larger distances: products between different pairs vanish."""
        tables = torch.zeros(channels.head_dim, channels.head_dim, dtype=torch.float64)
        for a, b in zip(channels.first, channels.second, strict=True):
            tables[[a, a, b, b], [a, b, a, b]] = 0.5
        still = torch.zeros_like(tables)
        free = torch.as_tensor(channels.free, dtype=torch.long)
        still[free[:, None], free[None, :]] = 1.0
        return cls(tables + still, tables, torch.zeros_like(tables), _quarter_turn(channels))

    def select(self, heads: Tensor) -> Rotation:
        """The rotations of some of the stacked heads; `heads` of any shape takes the place of the heads' axis."""
        return Rotation(self.cos_cos[heads], self.sin_sin[heads], self.sin_cos[heads], self.quarter)

    def mean(self, axis: int = 0, *, keepdim: bool = False) -> Rotation:
        """The average over an axis of stacked heads."""
        cos, sin, mixed = (t.mean(axis, keepdim=keepdim) for t in (self.cos_cos, self.sin_sin, self.sin_cos))
        return Rotation(cos, sin, mixed, self.quarter)

    def to(self, dtype: torch.dtype) -> Rotation:
        """The same in another precision."""
        return Rotation(*(t.to(dtype) for t in (self.cos_cos, self.sin_sin, self.sin_cos, self.quarter)))

    def forward(self, x: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
        """`E[R X Rᵀ]`: a second moment of keys after RoPE."""
        return self._turn(x, 1.0)

    def backward(self, x: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
        """`E[Rᵀ X R]`: a metric of queries as it acts on keys before RoPE."""
        return self._turn(x, -1.0)

    def _turn(self, x: Tensor, sign: float) -> Tensor:
        other, way = self._places
        left = x.index_select(-2, other) * way[:, None]  # quarter @ x
        right = x.index_select(-1, other) * way  # x @ quarter.mT
        mixed = self.sin_cos * left + self.sin_cos.mT * right
        return self.cos_cos * x + sign * mixed + self.sin_sin * (left.index_select(-1, other) * way)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        """Where each row of the quarter turn has its only entry, and that entry: ±1, or 0 where nothing turns."""
        return self.quarter.abs().argmax(-1), self.quarter.sum(-1)


def beyond_window(distances: Float[Tensor, "*heads window"]) -> Float[Tensor, "*heads longer"]:
    """The share of attention at each distance, with `TAIL` of it over `REACH` windows, falling as `1 / (1 + t)`."""
    window = distances.shape[-1]
    share = 1.0 / (1.0 + torch.arange(REACH * window, dtype=torch.float64))
    share = (TAIL * share / share.sum()).expand(*distances.shape[:-1], -1).clone()
    share[..., :window] += (1.0 - TAIL) * distances.double() / distances.double().sum(-1, keepdim=True)
    return share


def turn(distance: int, frequencies: Float[Tensor, " pairs"], channels: Channels) -> Float[Tensor, "d d"]:
    """`R`: how a key is turned for a query `distance` positions later."""
    angle = -distance * _rates(frequencies, channels)
    return angle.cos().diag() + angle.sin()[:, None] * _quarter_turn(channels)


def _rates(frequencies: Tensor, channels: Channels) -> Tensor:
    """Radians per position of every channel, `[d]`; free channels do not turn."""
    rate = torch.zeros(channels.head_dim, dtype=torch.float64)
    rate[list(channels.first)] = frequencies.double()
    rate[list(channels.second)] = frequencies.double()
    return rate


def _quarter_turn(channels: Channels) -> Tensor:
    """`J`: maps the first channel of each pair to the second and the second to minus the first."""
    quarter = torch.zeros(channels.head_dim, channels.head_dim, dtype=torch.float64)
    first, second = list(channels.first), list(channels.second)
    quarter[first, second], quarter[second, first] = -1.0, 1.0
    return quarter
