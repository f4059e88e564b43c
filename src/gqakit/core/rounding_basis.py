"""The basis in which cached heads round best: for values in closed form, for keys by a search over predicted errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from gqakit.core.attention import AttentionWeights
from gqakit.core.basis import Basis, Readers
from gqakit.core.cache_types import CachePair, CacheType
from gqakit.core.cache_types.base import Rotated
from gqakit.core.cache_types.blocks import Blocks
from gqakit.core.cache_types.hadamard import hadamard, largest_power
from gqakit.core.linalg import eigh, inv, svd
from gqakit.core.rope import Channels
from gqakit.core.statistics import LayerStatistics, own_moments

SAMPLES = 768
"""Keys that are drawn to predict what rounding costs; candidates are compared on the same ones."""
POSITIONS = 2048
"""Keys are drawn at positions up to this one."""
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS = (1.3, 1.0 / 1.3)
SWEEPS = 2
_RIDGE = 1e-6


def is_coarse(kind: CacheType, *, biased: bool = False) -> bool:
    """Whether a type rounds so much that the basis matters: integers of fewer than 8 bits, or of 8 for keys with biases.

    Biases make some frequency pairs of keys enormous, and the others of their blocks are rounded in steps of these.
    """
    plain = kind.plain if isinstance(kind, Rotated) else kind
    return isinstance(plain, Blocks) and plain.width < (9 if biased else 8)


def rounding_basis(
    weights: AttentionWeights,
    readers: Readers,
    moments: LayerStatistics,
    channels: Channels,
    pair: CachePair,
) -> Basis:
    """The basis of a layer's cached heads for a pair of cache types; None for a side that hardly rounds.

    Args:
        weights: as they are to be cached, merged or not. readers: which heads their query heads read.
        moments: of the layer's input.
        channels: what may be mixed of a key: nothing in a locked head.
        pair: the types.
    """
    moves = is_coarse(pair.key, biased=weights.key.bias is not None) and not channels.locked
    return Basis(
        key_basis(weights, readers, moments, channels, pair.key) if moves else None,
        value_basis(weights, readers, moments) if is_coarse(pair.value) else None,
    )


def value_basis(
    weights: AttentionWeights, readers: Readers, moments: LayerStatistics
) -> Float[Tensor, "value_heads head_dim head_dim"]:
    """For each value head the map after which noise that is alike in all channels costs least.

    Rounding gives every channel of a rotated head noise of a variance that is proportional to the head's energy. For a
    head with moment `C = E[v vᵀ]` and metric `M = Σ_q W_O[:,q]ᵀ W_O[:,q]` the cost `tr(B C Bᵀ) tr(B⁻ᵀ M B⁻¹)` is
    least, `(tr S)²`, for `B = S^{1/2} Vᵀ C^{-1/2}` with `M^{1/2} C^{1/2} = U S Vᵀ`; any rotation of that is as good. A
    Hadamard matrix makes all channels alike, and signs keep one that an engine applies from undoing it.
    """
    out = weights.output.double()
    metric = _by_head(out.mT @ out, readers.value, weights.value.num_heads)
    return _balanced(own_moments(weights.value, moments.input), metric)


def _balanced(moment: Tensor, metric: Tensor) -> Tensor:
    """The map of `value_basis` for each head, from its moment and its metric, `[heads, d, d]` each."""
    second = _root_of(moment)
    _, scale, right = svd(_root_of(metric) @ second)
    balanced = scale.sqrt()[..., None] * right @ inv(second)
    dim = balanced.shape[-1]
    size = largest_power(dim)
    spread = torch.kron(torch.eye(dim // size, dtype=torch.float64), hadamard(size).double())
    signs = torch.ones(dim, dtype=torch.float64)
    signs[torch.randperm(dim, generator=torch.Generator().manual_seed(dim))[: dim // 2]] = -1
    return signs[:, None] * (spread @ balanced)


def key_basis(
    weights: AttentionWeights, readers: Readers, moments: LayerStatistics, channels: Channels, kind: CacheType
) -> Float[Tensor, "key_heads head_dim head_dim"]:
    """For each key head a scale for every frequency pair (or channel), by the predicted error of the logits.

    Keys are drawn from their moments, placed, scaled, rounded and unscaled; the error counts as queries see it. The search
    starts from scales `b^β / a^α` of the amplitudes `a` of keys and `b` of queries, and then moves single pairs. Keys that
    do not rotate are mapped as values are, by the metric of their queries.
    """
    if not channels.first:
        asked = moments.input if moments.query is None else moments.query
        queries = _by_head(own_moments(weights.query, asked), readers.key, weights.key.num_heads)
        return _balanced(own_moments(weights.key, moments.input), queries)
    draw = _Draw.of(weights, readers, moments, channels)
    scales = _search(draw, kind)
    return torch.diag_embed(draw.spread(scales))


@dataclass(frozen=True)
class _Draw:
    """Keys at positions, and what an error of each costs.

    Attributes:
        keys: `[key heads, samples, d]`, rotated.
        roots: `[key heads, samples, d, d]`: an error `e` costs `‖rootᵀ e‖²`.
        channels: what a key's channels are.
        key_energy, query_energy: second moments of the channels, `[key heads, d]`.
    """

    keys: Tensor
    roots: Tensor
    channels: Channels
    key_energy: Tensor
    query_energy: Tensor

    @classmethod
    def of(
        cls, weights: AttentionWeights, readers: Readers, moments: LayerStatistics, channels: Channels
    ) -> _Draw:
        second = own_moments(weights.key, moments.input)  # [key heads, d, d]
        rows = weights.key.delivered().double()
        mean = rows @ moments.input[-1, : rows.shape[-1]].double()  # [key heads, d]
        spread = _root_of(second - mean[..., None] * mean[..., None, :])
        asked = moments.input if moments.query is None else moments.query
        queries = _by_head(own_moments(weights.query, asked), readers.key, weights.key.num_heads)
        generator = torch.Generator().manual_seed(0)
        heads, dim = mean.shape
        noise = torch.randn(heads, SAMPLES, dim, dtype=torch.float64, generator=generator)
        keys = mean[:, None] + noise @ spread
        roots = _root_of(queries)[:, None].expand(-1, SAMPLES, -1, -1)
        if channels.first and moments.frequencies is not None and moments.distances is not None:
            place = torch.randint(POSITIONS, (SAMPLES,), generator=generator)
            shares = moments.distances.double().clamp_min(0)
            reader = torch.arange(heads) * shares.shape[0] // heads
            back = torch.multinomial(shares[reader] + 1e-12, SAMPLES, True, generator=generator)
            keys = _turned(keys, place, moments.frequencies, channels)
            roots = _turned(roots.mT, (place + back)[..., None], moments.frequencies, channels).mT
        return cls(
            keys.float(),
            roots.float(),
            channels,
            second.diagonal(dim1=1, dim2=2),
            queries.diagonal(dim1=1, dim2=2),
        )

    @cached_property
    def part_of_channel(self) -> Tensor:
        """For each channel the scale that it has: one for both channels of a pair."""
        first, second, free = self.channels.indices
        parts = torch.zeros(self.keys.shape[-1], dtype=torch.long)
        pairs = len(first)
        parts[first] = parts[second] = torch.arange(pairs)
        parts[free] = pairs + torch.arange(len(free))
        return parts

    def of_parts(self, energy: Tensor) -> Tensor:
        """The amplitude of each pair, `[heads, parts]`."""
        count = int(self.part_of_channel.max()) + 1
        return energy.new_zeros(len(energy), count).index_add_(1, self.part_of_channel, energy).sqrt()

    def spread(self, scales: Tensor) -> Tensor:
        """A scale for each channel, `[heads, d]`."""
        return scales[:, self.part_of_channel].double()

    def cost(self, scales: Tensor, kind: CacheType) -> Tensor:
        """What rounding costs each head with such scales, `[heads]`."""
        by = self.spread(scales).float()[:, None]
        scaled = self.keys * by
        error = (kind.stored(scaled) - scaled) / by  # [heads, samples, d]
        return torch.einsum("hnd,hnde->hne", error, self.roots).square().sum(-1).mean(-1).double()


def _search(draw: _Draw, kind: CacheType) -> Tensor:
    """The scales of least cost that are found, `[heads, parts]`."""
    keys, queries = (draw.of_parts(e).clamp_min(1e-12) for e in (draw.key_energy, draw.query_energy))
    best = torch.ones_like(keys)
    least = draw.cost(best, kind)
    for power in POWERS:
        for weight in POWERS:
            tried = queries**weight / keys**power
            best, least = _better(draw, kind, tried / tried.mean(1, keepdim=True), best, least)
    for _ in range(SWEEPS):
        for part in range(best.shape[1]):
            for step in STEPS:
                tried = best.clone()
                tried[:, part] *= step
                best, least = _better(draw, kind, tried, best, least)
    return best


def _better(
    draw: _Draw, kind: CacheType, tried: Tensor, best: Tensor, least: Tensor
) -> tuple[Tensor, Tensor]:
    cost = draw.cost(tried, kind)
    return torch.where((cost < least)[:, None], tried, best), torch.minimum(cost, least)


def _turned(states: Tensor, place: Tensor, frequencies: Tensor, channels: Channels) -> Tensor:
    """Channels (last) rotated to positions, which broadcast over what is before them."""
    first, second, _ = channels.indices
    angle = place[..., None].double() * frequencies.double()  # [..., pairs]
    cos, sin = angle.cos(), angle.sin()
    turned = states.clone()
    turned[..., first] = cos * states[..., first] - sin * states[..., second]
    turned[..., second] = sin * states[..., first] + cos * states[..., second]
    return turned


def _by_head(second: Tensor, readers: Sequence[int], heads: int) -> Tensor:
    """The sum over the query heads that read each cached head, `[heads, d, d]`."""
    return second.new_zeros(heads, *second.shape[1:]).index_add_(0, torch.tensor(list(readers)), second)


def _root_of(moment: Tensor) -> Tensor:
    """The symmetric root of second moments, with a ridge that keeps it invertible."""
    values, vectors = eigh((moment + moment.mT) / 2)
    floor = _RIDGE * values.amax(-1, keepdim=True).clamp_min(1e-30)
    return vectors * values.clamp_min(floor).sqrt()[..., None, :] @ vectors.mT
