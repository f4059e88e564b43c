"""Random attention layers, and an attention of their own to compare functions with.

Nothing here uses the maths under test: rotary embedding is complex multiplication by position, heads are
read through explicit maps, moments are averages over given activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.distances import REACH, TAIL
from gqakit.core.rope import Channels
from gqakit.core.statistics import HeadStats, LayerStatistics, key_stats, value_stats

HEAD_DIM, WIDTH, TOKENS, WINDOW = 6, 10, 40, 9

STRUCTURES: dict[str, Channels] = {
    "rotary": Channels.rotary(HEAD_DIM),
    "partial": Channels.rotary(HEAD_DIM, 4),
    "interleaved": Channels.rotary(HEAD_DIM, layout="interleaved"),
    "none": Channels.mixing(HEAD_DIM),
    "locked": Channels.normalised(HEAD_DIM),
}
BIASES = ("", "qkv", "qv")
# Recorded distances say something where channels rotate alone; the interleaved layout differs in its indices alone.
WAYS = (
    ("rotary", False), ("rotary", True), ("partial", True), ("interleaved", True), ("none", False), ("locked", False)
)  # fmt: skip
HEADS = ((4, 4), (8, 4))  # (query heads, KV heads): multi-head, and grouped already


@dataclass(frozen=True)
class Layer:
    """Weights and all that says how they attend. A locked layer normalises q and k and then rotates them."""

    weights: AttentionWeights
    channels: Channels
    frequencies: Tensor | None

    @property
    def pairs(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self.channels.locked:
            return tuple(range(HEAD_DIM // 2)), tuple(range(HEAD_DIM // 2, HEAD_DIM))
        return self.channels.first, self.channels.second


def random_layer(structure: str, heads: int = 8, kv_heads: int = 4, biases: str = "", seed: int = 0) -> Layer:
    """A layer with Gaussian weights in float64; `biases` names the projections that have one."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    def projection(name: str, count: int) -> Projection:
        return Projection(
            normal(count, HEAD_DIM, WIDTH) / math.sqrt(WIDTH),
            normal(count, HEAD_DIM) if name in biases else None,
        )

    weights = AttentionWeights(
        projection("q", heads),
        projection("k", kv_heads),
        projection("v", kv_heads),
        normal(heads, WIDTH, HEAD_DIM),
    )
    channels = STRUCTURES[structure]
    count = HEAD_DIM // 2 if channels.locked else len(channels.first)
    frequencies = 0.9 * 0.13 ** torch.arange(count, dtype=torch.float64) if count else None
    return Layer(weights, channels, frequencies)


def activations(seed: int = 0, tokens: int = TOKENS) -> Tensor:
    """Layer inputs with unequal, correlated channels and a mean, `[tokens, width]`."""
    rng = torch.Generator().manual_seed(1000 + seed)
    mix = torch.randn(WIDTH, WIDTH, generator=rng, dtype=torch.float64)
    return torch.randn(tokens, WIDTH, generator=rng, dtype=torch.float64) @ mix / 3 + 0.3


def augmented(x: Tensor) -> Tensor:
    """`[x; 1]`, row by row."""
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def second_moment(x: Tensor) -> Tensor:
    """`E[x̃ x̃ᵀ]` over the rows."""
    rows = augmented(x)
    return rows.T @ rows / len(rows)


def random_distances(kv_heads: int, seed: int = 0) -> Tensor:
    """Where each KV head looks: a share for each distance, `[kv heads, WINDOW]`."""
    rng = torch.Generator().manual_seed(2000 + seed)
    share = torch.rand(kv_heads, WINDOW, generator=rng, dtype=torch.float64) ** 3
    return share / share.sum(1, keepdim=True)


def looked_at(distances: Tensor) -> Tensor:
    """The weight of each distance, for a recorded share: a tail goes to distances beyond the window."""
    weight = [0.0] * (REACH * len(distances))
    total = sum(1 / (1 + t) for t in range(len(weight)))
    for t in range(len(weight)):
        weight[t] = TAIL / (1 + t) / total
        if t < len(distances):
            weight[t] += (1 - TAIL) * float(distances[t]) / float(distances.sum())
    return torch.tensor(weight, dtype=torch.float64)


def moments_of(layer: Layer, seed: int = 0, recorded: bool = False) -> LayerStatistics:
    """Sample moments of random activations; with `recorded`, distances where the structure rotates."""
    c = second_moment(activations(seed))
    if not recorded or not layer.channels.first:
        return LayerStatistics(c, second_moment(activations(seed + 1)))
    distances = random_distances(layer.weights.num_kv_heads, seed)
    return LayerStatistics(c, second_moment(activations(seed + 1)), distances, layer.frequencies)


def both_stats(layer: Layer, moments: LayerStatistics) -> tuple[HeadStats, HeadStats]:
    """Key and value statistics."""
    return key_stats(layer.weights, moments, layer.channels), value_stats(layer.weights, moments)


def project(projection: Projection, x: Tensor) -> Tensor:
    """`[heads, tokens, head_dim]`."""
    out = torch.einsum("hdw,tw->htd", projection.weight, x)
    return out if projection.bias is None else out + projection.bias[:, None]


def rotate(heads: Tensor, position: Tensor, layer: Layer) -> Tensor:
    """Rotary embedding of `[..., tokens, head_dim]`: each pair is a complex number, turned by its position."""
    if layer.frequencies is None:
        return heads
    first, second = (list(channels) for channels in layer.pairs)
    turned = torch.complex(heads[..., first], heads[..., second]) * torch.exp(
        1j * position[:, None] * layer.frequencies
    )
    out = heads.clone()
    out[..., first], out[..., second] = turned.real, turned.imag
    return out


def attend(
    layer: Layer,
    x: Tensor,
    weights: AttentionWeights | None = None,
    maps: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Tensor:
    """Causal softmax attention, `[tokens, width]`.

    `weights` replace the layer's; `maps` say which key head and which value head each query head reads, by
    default those of a source layer.
    """
    w = weights or layer.weights
    per_head = w.num_heads // w.num_kv_heads
    key_of, value_of = maps or ([q // per_head for q in range(w.num_heads)],) * 2
    position = torch.arange(len(x), dtype=torch.float64)
    query, key, value = project(w.query, x), project(w.key, x), project(w.value, x)
    if layer.channels.locked:
        query, key = (h / h.square().mean(-1, keepdim=True).sqrt() for h in (query, key))
    query, key = rotate(query, position, layer), rotate(key, position, layer)
    logits = query @ key[list(key_of)].mT / math.sqrt(HEAD_DIM)
    hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    attention = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("htd,hwd->tw", attention @ value[list(value_of)], w.output)


def random_orthogonal(size: int, rng: torch.Generator) -> Tensor:
    """A random orthogonal matrix."""
    return torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64))[0]


def key_map(channels: Channels, rng: torch.Generator, *, scaled: bool) -> Tensor:
    """A random map that a key head may undergo unseen, `[d, d]`: orthogonal, or with `scaled` any such map."""
    out = torch.zeros(channels.head_dim, channels.head_dim, dtype=torch.float64)
    if channels.locked:  # a normalisation follows: only the length is free
        length = 0.3 + 3 * float(torch.rand(1, generator=rng))
        return length * torch.eye(channels.head_dim, dtype=torch.float64)
    for a, b in zip(channels.first, channels.second, strict=True):
        angle, size = torch.rand(2, generator=rng, dtype=torch.float64) * torch.tensor([6.28, 2.0])
        size = size + 0.3 if scaled else torch.tensor(1.0)
        out[a, a] = out[b, b] = size * angle.cos()
        out[b, a], out[a, b] = size * angle.sin(), -size * angle.sin()
    free = list(channels.free)
    if free:
        out[torch.tensor(free)[:, None], torch.tensor(free)] = value_map(len(free), rng, scaled=scaled)
    return out


def value_map(size: int, rng: torch.Generator, *, scaled: bool) -> Tensor:
    """A random map of freely mixing channels: orthogonal, or with `scaled` any well-conditioned one."""
    left, right = random_orthogonal(size, rng), random_orthogonal(size, rng)
    stretch = 0.3 + 2 * torch.rand(size, generator=rng, dtype=torch.float64)
    return left * stretch @ right if scaled else left


def turned(projection: Projection, maps: Sequence[Tensor]) -> Projection:
    """The projection with head `h` followed by `maps[h]`."""
    rows = torch.einsum("hab,hbw->haw", torch.stack(list(maps)), projection.augmented())
    return Projection.from_augmented(rows, projection.bias is not None)


def with_copies(
    layer: Layer, key_labels: Sequence[int], value_labels: Sequence[int], kind: str, seed: int = 0
) -> Layer:
    """The layer where heads with one label are copies of one head.

    `kind` is "same", "turned" (by rotations that readers could undo) or "scaled" (by any such map).
    """
    rng = torch.Generator().manual_seed(3000 + seed)
    w = layer.weights

    def key_copy() -> Tensor:
        if kind == "same":
            return torch.eye(HEAD_DIM, dtype=torch.float64)
        return key_map(layer.channels, rng, scaled=kind == "scaled")

    def value_copy() -> Tensor:
        if kind == "same":
            return torch.eye(HEAD_DIM, dtype=torch.float64)
        return value_map(HEAD_DIM, rng, scaled=kind == "scaled")

    def first_of(projection: Projection, labels: Sequence[int]) -> Projection:
        originals = [list(labels).index(label) for label in labels]
        return Projection(
            projection.weight[originals], None if projection.bias is None else projection.bias[originals]
        )

    key = turned(first_of(w.key, key_labels), [key_copy() for _ in key_labels])
    value = turned(first_of(w.value, value_labels), [value_copy() for _ in value_labels])
    return replace(layer, weights=replace(w, key=key, value=value))
