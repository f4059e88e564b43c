"""Bases of cached heads: nothing of what attention computes changes, and what is cached rounds better."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.basis import Basis, Readers, rebased
from gqakit.core.cache_types import cache_pair, cache_type
from gqakit.core.rope import Channels
from gqakit.core.rounding_basis import key_basis, rounding_basis, value_basis
from gqakit.core.statistics import LayerStatistics

HEADS, KV, DIM, WIDTH = 6, 2, 32, 96
READERS = Readers((0, 0, 0, 1, 1, 1), (0, 0, 0, 1, 1, 1))
FREQUENCIES = 10000.0 ** (-torch.arange(DIM // 2, dtype=torch.float64) / (DIM // 2))


def layer(seed: int = 0, bias: float = 0.0, spread: float = 2.0) -> AttentionWeights:
    """A layer whose channels differ in size as trained ones do, in float64; `bias` makes some pairs of keys enormous."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def projection(heads: int, pairs: bool) -> Projection:
        size = (spread * some(heads, DIM // 2 if pairs else DIM)).exp()
        size = torch.cat([size, size], 1) if pairs else size
        return Projection(some(heads, DIM, WIDTH) * size[..., None] / WIDTH**0.5, 0.1 * some(heads, DIM))

    query, key, value = projection(HEADS, True), projection(KV, True), projection(KV, False)
    key.bias[:, [3, 3 + DIM // 2]] += bias
    return AttentionWeights(query, key, value, some(HEADS, WIDTH, DIM) / DIM**0.5)


def statistics(seed: int = 3) -> tuple[LayerStatistics, torch.Tensor]:
    """Of some inputs `[positions, width]`, which come along."""
    inputs = torch.randn(64, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([inputs, torch.ones(64, 1, dtype=torch.float64)], 1)
    distances = torch.ones(KV, 64, dtype=torch.float64) / 64
    return LayerStatistics(rows.T @ rows / 64, None, distances, FREQUENCIES), inputs


def heads(projection: Projection, inputs: torch.Tensor) -> torch.Tensor:
    return torch.einsum("hdw,tw->htd", projection.weight, inputs) + projection.bias[:, None]


def turned(states: torch.Tensor) -> torch.Tensor:
    angle = torch.arange(states.shape[1], dtype=torch.float64)[:, None] * FREQUENCIES
    one, two = states.chunk(2, -1)
    return torch.cat([angle.cos() * one - angle.sin() * two, angle.sin() * one + angle.cos() * two], -1)


def attention(weights: AttentionWeights, inputs: torch.Tensor, pair: str | None = None) -> torch.Tensor:
    query, key = turned(heads(weights.query, inputs)), turned(heads(weights.key, inputs))
    value = heads(weights.value, inputs)
    if pair is not None:
        key, value = cache_pair(pair).stored(key, value)
    readers = list(READERS.key)
    scores = (query @ key[readers].mT / 40).masked_fill(torch.ones(64, 64).triu(1).bool(), -torch.inf)
    return torch.einsum("hts,hsd,hwd->tw", scores.softmax(-1), value[readers], weights.output)


@pytest.mark.parametrize("bias", [0.0, 30.0])
def test_the_function_of_a_layer_is_unchanged(bias):
    weights, (moments, inputs) = layer(bias=bias), statistics()
    basis = rounding_basis(weights, READERS, moments, Channels.rotary(DIM), cache_pair("q4_0"))
    moved = rebased(weights, READERS, basis)
    torch.testing.assert_close(attention(moved, inputs), attention(weights, inputs), rtol=1e-6, atol=1e-8)
    assert not torch.allclose(moved.key.weight, weights.key.weight)
    assert not torch.allclose(moved.value.weight, weights.value.weight)


def test_everything_else_of_a_layer_comes_along():
    weights, (moments, _) = layer(), statistics()
    sinks = torch.arange(HEADS, dtype=torch.float64)
    weights = replace(weights, sinks=sinks, key=replace(weights.key, each_alone=True))
    basis = rounding_basis(weights, READERS, moments, Channels.rotary(DIM), cache_pair("q4_0"))
    moved = rebased(weights, READERS, basis)
    assert moved.sinks is sinks
    assert moved.key.each_alone
    assert not torch.equal(moved.key.weight, weights.key.weight)


def test_a_wrong_map_changes_it():
    weights, (_, inputs) = layer(), statistics()
    mixing = torch.linalg.qr(torch.randn(KV, DIM, DIM, dtype=torch.float64))[0]
    good = attention(weights, inputs)
    assert torch.allclose(attention(rebased(weights, READERS, Basis(None, mixing)), inputs), good)
    # Keys may not mix across frequency pairs, and what reads one head may not be undone with another's map.
    assert not torch.allclose(
        attention(rebased(weights, READERS, Basis(mixing, None)), inputs), good, rtol=1e-2
    )
    crossed = Readers(READERS.key, READERS.value[::-1])
    assert not torch.allclose(
        attention(rebased(weights, crossed, Basis(None, mixing)), inputs), good, rtol=1e-2
    )


def test_balanced_values_reach_the_bound_and_no_rotation_beats_it():
    weights, (moments, _) = layer(), statistics()
    maps = value_basis(weights, READERS, moments)
    rows = weights.value.augmented()
    second = rows @ moments.input @ rows.mT
    out = torch.stack(
        [o.reshape(-1, DIM).T @ o.reshape(-1, DIM) for o in weights.output.reshape(KV, -1, WIDTH, DIM)]
    )

    def cost(by: torch.Tensor) -> torch.Tensor:
        undo = torch.linalg.inv(by)
        energy = (by @ second @ by.mT).diagonal(dim1=1, dim2=2).sum(1)
        return energy * (undo.mT @ out @ undo).diagonal(dim1=1, dim2=2).sum(1)

    def root(moment: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(moment)
        return vectors * values.clamp_min(0).sqrt()[:, None, :] @ vectors.mT

    bound = torch.linalg.svdvals(root(out) @ root(second)).sum(1) ** 2
    torch.testing.assert_close(cost(maps), bound, rtol=1e-2, atol=0)  # a ridge keeps roots invertible
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        other = torch.randn(KV, DIM, DIM, dtype=torch.float64, generator=generator)
        assert (cost(other) >= bound).all()
    assert (cost(torch.eye(DIM, dtype=torch.float64).expand(KV, -1, -1)) > 1.5 * bound).all()
    # And all channels have a like share of the energy, so that blocks round alike.
    shares = (maps @ second @ maps.mT).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(shares, shares.mean(1, keepdim=True).expand_as(shares), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("name", "bias", "share"), [("q4_0", 30.0, 0.7), ("q4_0+h", 0.0, 0.5), ("q4_0+h", 30.0, 0.4)]
)
def test_what_is_cached_in_it_rounds_better(name, bias, share):
    weights, (moments, inputs) = layer(bias=bias), statistics()
    good = attention(weights, inputs)
    basis = rounding_basis(weights, READERS, moments, Channels.rotary(DIM), cache_pair(name))

    def error(of: AttentionWeights, types: str) -> float:
        return float((attention(of, inputs, types) - good).square().sum())

    for part, types in (
        (basis, name),
        (Basis(basis.key, None), f"{name},f16"),
        (Basis(None, basis.value), f"f16,{name}"),
    ):
        assert error(rebased(weights, READERS, part), types) < share * error(weights, types)


def test_keys_of_a_locked_head_and_scales_of_pairs():
    weights, (moments, _) = layer(), statistics()
    assert rounding_basis(weights, READERS, moments, Channels.normalised(DIM), cache_pair("q4_0")).key is None
    maps = key_basis(weights, READERS, moments, Channels.rotary(DIM), cache_type("q4_0"))
    scales = maps.diagonal(dim1=1, dim2=2)
    assert torch.equal(maps, torch.diag_embed(scales))
    assert torch.equal(*scales.chunk(2, -1))  # both channels of a pair


def test_keys_are_balanced_for_queries_of_other_inputs_where_these_are_known():
    """As in cross attention: what another layer's output asks decides, not what the keys' own inputs would ask."""
    weights, (moments, _) = layer(), statistics()
    asked = torch.zeros_like(moments.input)
    asked[:4, :4] = torch.eye(4, dtype=torch.float64)
    moments = replace(moments, query=asked)
    rows = weights.query.augmented()
    second = (rows @ asked @ rows.mT).reshape(KV, -1, DIM, DIM).sum(1)
    keys = weights.key.augmented() @ moments.input @ weights.key.augmented().mT

    def cost(by: torch.Tensor) -> torch.Tensor:
        """Of noise that is alike in all channels of a key, as these queries see it."""
        undo = torch.linalg.inv(by)
        energy = (by @ keys @ by.mT).diagonal(dim1=1, dim2=2).sum(1)
        return energy * (undo.mT @ second @ undo).diagonal(dim1=1, dim2=2).sum(1)

    def basis(known: LayerStatistics, channels: Channels) -> torch.Tensor:
        return key_basis(weights, READERS, known, channels, cache_type("q4_0"))

    free, rotary, own = Channels.mixing(DIM), Channels.rotary(DIM), replace(moments, query=None)
    assert (cost(basis(moments, free)) < cost(basis(own, free))).all()
    assert not torch.allclose(basis(moments, rotary), basis(own, rotary))
