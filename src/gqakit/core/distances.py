"""Rotary embedding, averaged over the distances at which attention really looks.

A query at position `i` reads a key at position `j` through `qᵀ R k` with `R` the rotation by the distance
`i − j`. What a linear map on the key's channels costs therefore depends on the distances that carry attention.
`Rotation` holds the averages that this takes; a map that acts alike at all those distances need not commute
with rotation at every other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
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

    What stands in `X` between two frequency pairs, `[[A, B], [C, D]]`, acts on a complex number `z` as `α z + β z̄` with
    `2 α = (A + D) + i (C − B)` and `2 β = (A − D) + i (C + B)`. Turned on both sides by angles `φ` and `ψ`, `α` gains
    `e^{i(φ − ψ)}` and `β` gains `e^{i(φ + ψ)}`, so two complex tables between pairs say it all. Channels that do not turn
    are taken two by two as pairs of angle 0. The tables are linear in the weights of the distances: those of several heads
    may be stacked and averaged.

    Attributes:
        apart: `E[e^{i(φ − ψ)}] / 2`, real and imaginary part, `[2, *heads, pairs, pairs]`.
        along: `E[e^{i(φ + ψ)}] / 2`, likewise.
        order: where in a flattened `[d, d]` matrix the channels stand, all first ones of pairs before all second ones;
            None where that is their order already.
    """

    apart: Float[Tensor, "2 *heads pairs pairs"]
    along: Float[Tensor, "2 *heads pairs pairs"]
    order: Int[Tensor, " channels"] | None

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
        first, _ = _pairs(channels)
        position = torch.arange(distances.shape[-1], dtype=torch.float64)
        angle = -position[:, None] * _rates(frequencies, channels)[list(first)]  # [window, pairs]
        cos, sin = angle.cos(), angle.sin()
        cos_cos, sin_sin = cos.T @ (weight * cos), sin.T @ (weight * sin)
        sin_cos = sin.T @ (weight * cos)
        apart = torch.stack([cos_cos + sin_sin, sin_cos - sin_cos.mT]) / 2
        along = torch.stack([cos_cos - sin_sin, sin_cos + sin_cos.mT]) / 2
        return cls(apart, along, _order(channels))

    @classmethod
    def all_distances(cls, channels: Channels) -> Rotation:
        """The average over ever larger distances: products between different pairs vanish."""
        first, _ = _pairs(channels)
        still = torch.tensor([channel in channels.free for channel in first])
        both = (still[:, None] & still).double()
        apart = both + torch.diag((~still).double())
        real, none = torch.stack([apart, both]) / 2, torch.zeros_like(both)
        return cls(torch.stack([real[0], none]), torch.stack([real[1], none]), _order(channels))

    def select(self, heads: Tensor) -> Rotation:
        """The rotations of some of the stacked heads; `heads` of any shape takes the place of the heads' axis."""
        return Rotation(self.apart[:, heads], self.along[:, heads], self.order)

    def mean(self, *, keepdim: bool = False) -> Rotation:
        """The average over the last axis of stacked heads."""
        return Rotation(
            self.apart.mean(-3, keepdim=keepdim), self.along.mean(-3, keepdim=keepdim), self.order
        )

    def to(self, dtype: torch.dtype) -> Rotation:
        """The same in another precision."""
        return Rotation(self.apart.to(dtype), self.along.to(dtype), self.order)

    def forward(self, x: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
        """`E[R X Rᵀ]`: a second moment of keys after RoPE."""
        return self._turn(x, 1.0)

    def backward(self, x: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
        """`E[Rᵀ X R]`: a metric of queries as it acts on keys before RoPE."""
        return self._turn(x, -1.0)

    def _turn(self, x: Tensor, sign: float) -> Tensor:
        width, half = x.shape[-1], self.apart.shape[-1]
        if width < 2 * half:  # one channel that does not turn has no other beside it
            wider = torch.zeros(*x.shape[:-2], width + 1, width + 1, dtype=x.dtype)
            wider[..., :width, :width] = x
            return self._turn(wider, sign)[..., :width, :width]
        if self.order is not None:
            x = x.flatten(-2).index_select(-1, self.order).reshape(x.shape)
        a, b, c, d = x[..., :half, :half], x[..., :half, half:], x[..., half:, :half], x[..., half:, half:]
        apart, apart_i, along, along_i = self.apart[0], self.apart[1], self.along[0], self.along[1]
        plus, minus, cross, both = a + d, a - d, c - b, c + b
        alpha = (apart * plus).addcmul_(apart_i, cross, value=-sign)
        alpha_i = (apart * cross).addcmul_(apart_i, plus, value=sign)
        beta = (along * minus).addcmul_(along_i, both, value=-sign)
        beta_i = (along * both).addcmul_(along_i, minus, value=sign)
        turned = torch.empty(*alpha.shape[:-2], width, width, dtype=x.dtype)
        torch.add(alpha, beta, out=turned[..., :half, :half])
        torch.sub(beta_i, alpha_i, out=turned[..., :half, half:])
        torch.add(beta_i, alpha_i, out=turned[..., half:, :half])
        torch.sub(alpha, beta, out=turned[..., half:, half:])
        if self.order is None:
            return turned
        back = torch.empty_like(turned).flatten(-2)
        return back.index_copy_(-1, self.order, turned.flatten(-2)).view_as(turned)


def _pairs(channels: Channels) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first and the second channels of all pairs, free ones two by two; an odd one has its second beyond the head."""
    half = (len(channels.free) + 1) // 2
    second = (
        *channels.second,
        *channels.free[half:],
        *range(channels.head_dim, channels.head_dim + len(channels.free) % 2),
    )
    return (*channels.first, *channels.free[:half]), second


def _order(channels: Channels) -> Tensor | None:
    """See `Rotation.order`."""
    first, second = _pairs(channels)
    order = torch.as_tensor(first + second)
    width = len(order)
    if torch.equal(order, torch.arange(width)):
        return None
    return (order[:, None] * width + order).flatten()


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
