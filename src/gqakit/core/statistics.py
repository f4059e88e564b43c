"""Inner products between the heads of a layer, from its weights and its calibration statistics.

For each attention layer calibration records second moments `C = E[x̃ x̃ᵀ]` with `x̃ = [x; 1]`. From
them and the weights follow all inner products between heads: `HeadStats` holds those of the key heads
or of the value heads of a layer, and every merge rule and grouping method works on it alone, never on
the `d × D` weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.distances import Rotation, beyond_window
from gqakit.core.linalg import eigvalsh
from gqakit.core.rope import Channels
from gqakit.core.weighting import roots, weighted_gram


@dataclass(frozen=True)
class LayerStatistics:
    """What calibration knows of one layer. Second moments are `[D+1, D+1]` averages over `x̃ = [x; 1]`.

    Attributes:
        input: over the layer's inputs; weighs queries and keys.
        value: over the inputs as attention averages them, `z = Σ_t p_t x̃_t`, of which value heads make what reaches the
            output (attention weights `p` sum to 1, so the 1 of the bias stays a 1); where None, `input` stands in.
        query: over the inputs of queries, where another layer's output makes the keys; None where they are the same.
        key: over the keys of all heads side by side as they leave a normalisation, before they rotate; None without one.
        query_heads: `Σ_q E[q̂ q̂ᵀ]` of the query heads of each KV head, likewise.
        distances: share of each source KV head's attention that falls on each distance, `[kv heads, window]`;
            None where it was not recorded or positions do not rotate.
        frequencies: radians per position of each rotary pair; None like `distances`.
    """

    input: Float[Tensor, "augmented augmented"]
    value: Float[Tensor, "augmented augmented"] | None = None
    distances: Float[Tensor, "kv_heads window"] | None = None
    frequencies: Float[Tensor, " pairs"] | None = None
    query: Float[Tensor, "augmented augmented"] | None = None
    key: Float[Tensor, "all_channels all_channels"] | None = None
    query_heads: Float[Tensor, "kv_heads head_dim head_dim"] | None = None

    @classmethod
    def identity(cls, width: int) -> LayerStatistics:
        """`C = I`: what weights-only methods assume."""
        return cls(torch.eye(width + 1, dtype=torch.float64))


@dataclass(frozen=True)
class HeadStats:
    """Inner products between the key heads, or the value heads, of one layer.

    `gram[h, :, g, :]` is `E[k_h k_gᵀ]`, keys before rotation. `metric[h]` weighs an error of head `h`: an error
    vector `e`, rotated if it is a key's, costs `eᵀ metric[h] e`, so the costs of different heads add up.
    `gram` may be in float32 (see `head_gram`); the statistics of some of the heads are in float64 again.
    `channels` says what may be mixed. The statistics are those of `scale[h] · k_h`; `scale` is 1 but where
    a normalisation removes the length anyway. `distances` and `frequencies` are those of `LayerStatistics`.
    `behind_norm`: the heads are what a normalisation leaves, so no weights before it can take up the maps.
    `beyond`: a part of the weight goes to distances beyond the recorded ones.
    """

    gram: Float[Tensor, "heads head_dim heads head_dim"]
    metric: Float[Tensor, "heads head_dim head_dim"]
    scale: Float[Tensor, " heads"]
    channels: Channels
    distances: Float[Tensor, "heads window"] | None = None
    frequencies: Float[Tensor, " pairs"] | None = None
    behind_norm: bool = False
    beyond: bool = True

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return self.gram.shape[0]

    @property
    def single(self) -> bool:
        """Whether inner products are in float32: see `head_gram`."""
        return self.gram.dtype == torch.float32

    @cached_property
    def weighted(self) -> Float[Tensor, "wide wide"]:
        """The Gram matrix of all heads stacked, each weighted by `M_h^{1/2}`, before RoPE."""
        return weighted_gram(self.gram, roots(self.metric)[0].to(self.gram.dtype))

    @cached_property
    def spectrum(self) -> Float[Tensor, " wide"]:
        """The eigenvalues of `weighted`, ascending: one decomposition for every number of groups."""
        return eigvalsh((self.weighted + self.weighted.mT) / 2).double().clamp_min(0)

    def select(self, members: Sequence[int]) -> HeadStats:
        """The statistics of some of the heads."""
        index = torch.as_tensor(list(members))
        selected = replace(
            self,
            gram=self.gram[index][:, :, index].double(),
            metric=self.metric[index],
            scale=self.scale[index],
            distances=None if self.distances is None else self.distances[index],
        )
        if self.rotations is not None:  # hand the tables down: a search selects thousands of times
            selected.__dict__["rotations"] = self.rotations.select(index)
        return selected

    @cached_property
    def rotations(self) -> Rotation | None:
        """How rotary embedding turns each head, averaged over where it looks; None without recorded distances."""
        if not self.channels.first or self.distances is None or self.frequencies is None:
            return None
        share = beyond_window(self.distances) if self.beyond else self.distances
        return Rotation.over(share, self.frequencies, self.channels)

    @cached_property
    def rotation(self) -> Rotation | None:
        """The rotation of all these heads together; None where nothing turns.

        Without recorded distances all distances count alike.
        """
        if not self.channels.first:
            return None
        return Rotation.all_distances(self.channels) if self.rotations is None else self.rotations.mean()

    def after_rope(
        self, moment: Float[Tensor, "*batch head_dim head_dim"]
    ) -> Float[Tensor, "*batch head_dim head_dim"]:
        """`E[R X Rᵀ]`: a second moment between heads after RoPE, averaged over distances; as it is without RoPE."""
        return moment if self.rotation is None else self.rotation.forward(moment)

    @property
    def own(self) -> Float[Tensor, "heads head_dim head_dim"]:
        """`E[k_h k_hᵀ]` of each head, before RoPE."""
        return self.gram.diagonal(dim1=0, dim2=2).movedim(-1, 0).double()

    def energy(self) -> Float[Tensor, " heads"]:
        """`E[(R k_h)ᵀ M_h (R k_h)]`: what losing head `h` altogether would cost."""
        return (self.after_rope(self.own) * self.metric.mT).sum((1, 2))


def head_gram(
    projection: Projection,
    moment: Float[Tensor, "augmented augmented"],
    groups: Sequence[Sequence[int]] | None = None,
) -> Float[Tensor, "heads head_dim heads head_dim"]:
    """`E[k_h k_gᵀ]` for all pairs of heads of a projection: in float64, or in float32 for `SINGLE` channels and more.

    Weights are read in 8 or 11 bits and moments kept in float32, so what float32 adds is rounding of one part in a
    million of a head's energy.

    Args:
        projection: the heads. moment: second moments of their inputs.
        groups: in float32 only pairs within one of these, of two heads or more, are worked out, and others stay 0; None
            for all pairs.
    """
    shape = (projection.num_heads, projection.head_dim)
    dtype = _precision(projection)
    if dtype == torch.float32 and groups is not None:
        return _gram_within(projection.delivered().to(dtype), moment, groups)
    rows = projection.delivered().to(dtype).flatten(0, 1)  # [heads * head_dim, width (+ 1)]
    width = rows.shape[-1]
    turned = rows @ moment[:width, :width].to(dtype)
    if dtype == torch.float64:
        gram = turned @ rows.T
        return ((gram + gram.T) / 2).reshape(*shape, *shape)  # symmetric whatever rounding did
    gram = torch.empty(len(rows), len(rows), dtype=dtype)
    for start in range(0, len(rows), _ROWS_AT_ONCE):  # one half of a symmetric matrix, strip by strip
        strip = slice(start, start + _ROWS_AT_ONCE)
        below = turned[start:] @ rows[strip].T
        square = below[: below.shape[1]]
        below[: below.shape[1]] = (square + square.T) / 2
        gram[start:, strip], gram[strip, start:] = below, below.T
    return gram.reshape(*shape, *shape)


SINGLE = 2048
"""Channels of all heads from which inner products are worked out in float32."""
_ROWS_AT_ONCE = 512


def _gram_within(
    rows: Float[Tensor, "heads head_dim width"], moment: Tensor, groups: Sequence[Sequence[int]]
) -> Float[Tensor, "heads head_dim heads head_dim"]:
    """`head_gram` within groups; heads that stay alone are not looked at."""
    heads, dim, _ = rows.shape
    shared = [list(group) for group in groups if len(group) > 1]
    merged = torch.as_tensor([head for group in shared for head in group], dtype=torch.long)
    own = rows[merged].flatten(0, 1)  # [merged heads * head_dim, width]
    half = _times_half(own, moment)
    gram, start = torch.zeros(heads, heads, dim, dim, dtype=rows.dtype), 0
    for group in shared:
        of_group = slice(start, start := start + len(group) * dim)
        inner = half[of_group] @ own[of_group].T
        blocks = (inner + inner.T).view(len(group), dim, len(group), dim)
        index = torch.as_tensor(group)
        gram[index[:, None], index] = blocks.transpose(1, 2)
    return gram.transpose(1, 2)


def _times_half(rows: Float[Tensor, "rows width"], moment: Tensor) -> Float[Tensor, "rows width"]:
    """`rows @ L`, where `L + Lᵀ` is the symmetric moment: `rows @ moment` for half the arithmetic.

    `rows @ moment @ rowsᵀ` is then `(rows @ L) @ rowsᵀ` and its transpose added up.
    """
    width = rows.shape[1]
    product = torch.empty_like(rows)
    for start in range(0, width, _ROWS_AT_ONCE):
        strip = slice(start, min(start + _ROWS_AT_ONCE, width))
        below = moment[start:width, strip].to(rows.dtype, copy=True)  # [width - start, strip]
        below[: below.shape[1]].tril_()
        below.diagonal().mul_(0.5)
        product[:, strip] = rows[:, start:] @ below
    return product


def _precision(projection: Projection) -> torch.dtype:
    return torch.float32 if projection.num_heads * projection.head_dim >= SINGLE else torch.float64


def own_moments(
    projection: Projection, moment: Float[Tensor, "augmented augmented"]
) -> Float[Tensor, "heads head_dim head_dim"]:
    """`E[q qᵀ]` of each head alone, as float64: the diagonal blocks of `head_gram` at a fraction of its cost."""
    dtype = _precision(projection)
    rows = projection.delivered().to(dtype)  # [heads, head_dim, width (+ 1)]
    width = rows.shape[-1]
    if dtype == torch.float32:
        own = _times_half(rows.flatten(0, 1), moment).view(rows.shape) @ rows.mT
        return (own + own.mT).double()
    own = (rows.flatten(0, 1) @ moment[:width, :width].to(dtype)).reshape(rows.shape) @ rows.mT
    return (own + own.mT) / 2


def key_stats(
    weights: AttentionWeights,
    moments: LayerStatistics,
    channels: Channels,
    groups: Sequence[Sequence[int]] | None = None,
) -> HeadStats:
    """Statistics of the key heads, errors weighed by the queries that read them, before RoPE.

    The logit error of query head `q` is `q·δk`, so the metric of a key head is `Σ_q E[q qᵀ]` over its
    query heads. Where a normalisation follows the projection the length of `k` before it is meaningless:
    heads are first scaled to equal energy, and all their channels count alike. `groups`: see `head_gram`.
    """
    gram = head_gram(weights.key, moments.input, groups)
    second = own_moments(weights.query, moments.input if moments.query is None else moments.query)
    metric = _per_kv_head(second, weights)
    scale = torch.ones(gram.shape[0], dtype=torch.float64)
    if channels.locked and (weights.key.gain is None or weights.key.each_alone):
        before = own_moments(replace(weights.key, gain=None), moments.input)  # of what is normalised
        length = before.diagonal(dim1=1, dim2=2).sum(-1).clamp_min(1e-30).sqrt()  # [kv heads]
        scale = length.mean() / length
        gram = gram * scale[:, None, None, None] * scale[None, None, :, None]
        energy = metric.diagonal(dim1=1, dim2=2).mean(1)
        metric = energy[:, None, None] * torch.eye(gram.shape[1], dtype=torch.float64)
    return HeadStats(gram, metric, scale, channels, moments.distances, moments.frequencies)


def normalised_key_stats(moments: LayerStatistics, channels: Channels) -> HeadStats:
    """Statistics of the key heads as they leave their normalisation, before RoPE: a vector like any other.

    Args:
        moments: with `key` and `query_heads`, which calibration takes from activations.
        channels: what may be mixed there.
    """
    assert moments.key is not None
    assert moments.query_heads is not None
    metric = moments.query_heads.double()
    heads, dim = metric.shape[:2]
    gram = moments.key.double().reshape(heads, dim, heads, dim)
    scale = torch.ones(heads, dtype=gram.dtype)
    return HeadStats(gram, metric, scale, channels, moments.distances, moments.frequencies, behind_norm=True)


def value_stats(
    weights: AttentionWeights, moments: LayerStatistics, groups: Sequence[Sequence[int]] | None = None
) -> HeadStats:
    """Statistics of the value heads, errors weighed by what the output projection makes of them.

    An error `δv` moves the output by `W_O[:,q] δv`, so the metric of a value head is `Σ_q W_O[:,q]ᵀ W_O[:,q]` over its
    query heads. `groups`: see `head_gram`.
    """
    gram = head_gram(weights.value, moments.input if moments.value is None else moments.value, groups)
    out = weights.output.double()
    second = out.transpose(1, 2) @ out  # [query heads, d, d]
    metric = _per_kv_head(second, weights)
    scale = torch.ones(gram.shape[0], dtype=torch.float64)
    return HeadStats(gram, metric, scale, Channels.mixing(weights.value.head_dim))


def _per_kv_head(
    second: Float[Tensor, "query_heads d d"], weights: AttentionWeights
) -> Float[Tensor, "kv_heads d d"]:
    """The sum over the query heads of each KV head, which follow each other in a source layer."""
    return second.reshape(weights.num_kv_heads, -1, *second.shape[1:]).sum(1)


def weight_inner(projection: Projection) -> Float[Tensor, "heads heads"]:
    """Inner products of the heads' flattened weights (and biases), in float64: `trace(W̃[h] W̃[g]ᵀ)`.

    Taken channel by channel, so that the copy in float64 is a fraction of the projection.
    """
    rows = projection.delivered()
    inner = torch.zeros(rows.shape[0], rows.shape[0], dtype=torch.float64)
    for start in range(0, rows.shape[1], _CHANNELS_AT_ONCE):
        flat = rows[:, start : start + _CHANNELS_AT_ONCE].double().flatten(1)
        inner += flat @ flat.T
    return inner


_CHANNELS_AT_ONCE = 16  # of a head of 128: an eighth of the projection in float64 at a time
