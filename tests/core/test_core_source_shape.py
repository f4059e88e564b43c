"""A converted layer with its heads repeated, and heads merged around normalisations: each computes what the layer computed.

The function is that of an attention written here, with a normalisation of each head alone or of all heads together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from core_layers import (
    HEAD_DIM,
    Layer,
    activations,
    attend,
    both_stats,
    moments_of,
    project,
    random_layer,
    rotate,
    with_copies,
)
from torch import Tensor

from gqakit.core.apply import apply_grouping, in_source_shape
from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.grouping import Grouping, Partition
from gqakit.core.merging import RULES
from gqakit.core.rope import Channels
from gqakit.core.statistics import normalised_key_stats, value_stats

SHARED = Grouping.shared(Partition((0, 1, 1, 0)))
APART = Grouping(Partition((0, 1, 0, 1)), Partition((0, 1, 1, 2)))
UNEQUAL = Grouping.shared(Partition((0, 1, 0, 0)))


def close(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one, other, atol=1e-9 * float(other.abs().max())))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("grouping", [SHARED, APART])
@pytest.mark.parametrize("structure", ["rotary", "none"])
def test_heads_repeated_compute_what_shared_heads_compute(
    structure: str, grouping: Grouping, fixed: bool
) -> None:
    layer = random_layer(structure, biases="qkv")
    sinks = torch.arange(8, dtype=torch.float64)
    layer = replace(layer, weights=replace(layer.weights, sinks=sinks))
    keys, values = both_stats(layer, moments_of(layer))
    rule = RULES["fold"]
    made = apply_grouping(layer.weights, grouping, keys, values, rule, rule, fixed_queries=fixed)
    order = list(grouping.query_order(8, fixed=fixed))
    assert made.sinks is not None
    assert made.sinks.tolist() == order  # each sink beside its query head
    same = in_source_shape(made, grouping, fixed_queries=fixed)
    assert (same.num_heads, same.num_kv_heads, same.value.num_heads) == (8, 4, 4)
    assert same.sinks is not None
    assert torch.equal(same.sinks, sinks)
    x = activations(seed=5)
    key_of, value_of = (
        [partition.labels[q // 2] for q in order] for partition in (grouping.key, grouping.value)
    )
    assert close(attend(layer, x, same), attend(layer, x, made, (key_of, value_of)))
    assert not close(attend(layer, x, same), attend(layer, x)), "merging changed something"


def normalised(projection: Projection, x: Tensor) -> Tensor:
    """Heads after their normalisation and gain, `[heads, tokens, d]`."""
    heads = project(projection, x)
    over = (-1,) if projection.each_alone else (0, -1)
    assert projection.gain is not None
    return heads / heads.square().mean(over, keepdim=True).sqrt() * projection.gain[:, None]


def attend_normalised(
    layer: Layer,
    x: Tensor,
    weights: AttentionWeights | None = None,
    key_of: Sequence[int] | None = None,
    value_of: Sequence[int] | None = None,
    merged: Sequence[int] | None = None,
) -> Tensor:
    """`attend` with normalised queries and keys; where there are maps, keys are added up into those of `merged`."""
    w = weights or layer.weights
    query, key, value = normalised(w.query, x), normalised(w.key, x), project(w.value, x)
    if w.maps is not None:
        assert merged is not None
        mapped = w.maps.key @ key.mT  # [source heads, d, tokens]
        key = torch.stack([
            sum((mapped[h] for h in range(len(merged)) if merged[h] == g), torch.zeros_like(mapped[0])).mT
            for g in range(max(merged) + 1)
        ])  # fmt: skip
        query = (w.maps.query @ query.mT).mT
    position = torch.arange(len(x), dtype=torch.float64)
    query, key = rotate(query, position, layer), rotate(key, position, layer)
    every = [q // 2 for q in range(8)]
    logits = query @ key[list(key_of or every)].mT / math.sqrt(HEAD_DIM)
    hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    attention = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("htd,hwd->tw", attention @ value[list(value_of or every)], w.output)


def with_gains(layer: Layer, labels: Sequence[int], each_alone: bool, seed: int = 0) -> Layer:
    """The layer with a gain for each channel, the same in key heads of one label."""
    rng = torch.Generator().manual_seed(seed)
    w = layer.weights
    query = torch.rand(8, HEAD_DIM, generator=rng, dtype=torch.float64) + 0.5
    key = (torch.rand(4, HEAD_DIM, generator=rng, dtype=torch.float64) + 0.5)[list(labels)]
    gains = replace(
        w,
        query=replace(w.query, gain=query, each_alone=each_alone),
        key=replace(w.key, gain=key, each_alone=each_alone),
    )
    return replace(layer, weights=gains)


@pytest.mark.parametrize("each_alone", [True, False])
@pytest.mark.parametrize("grouping", [SHARED, UNEQUAL])
def test_copies_before_a_normalisation_with_gains_are_merged_without_loss(
    grouping: Grouping, each_alone: bool
) -> None:
    """A mean square over all heads weighs a merged head as often as it has members."""
    labels = grouping.key.labels
    layer = with_gains(
        with_copies(random_layer("locked", biases="qkv"), labels, labels, "same"), labels, each_alone
    )
    keys, values = both_stats(layer, moments_of(layer))
    made = apply_grouping(layer.weights, grouping, keys, values, RULES["mean"], RULES["fold"])
    x = activations(seed=6)
    before = attend_normalised(layer, x)
    order = grouping.query_order(8)
    reads = [labels[q // 2] for q in order]
    assert close(attend_normalised(layer, x, made, reads, reads), before)
    same = in_source_shape(made, grouping)
    assert close(attend_normalised(layer, x, same), before)
    wrong = replace(same, key=replace(same.key, gain=2 * same.key.gain))  # pyright: ignore[reportOptionalOperand]
    assert not close(attend_normalised(layer, x, wrong), before)


def test_heads_alone_keep_their_gain_and_others_get_the_mean_of_theirs() -> None:
    layer = with_gains(random_layer("locked"), range(4), each_alone=True)
    grouping = Grouping.shared(Partition((0, 1, 1, 2)))
    keys, values = both_stats(layer, moments_of(layer))
    key = apply_grouping(layer.weights, grouping, keys, values, RULES["mean"], RULES["mean"]).key
    gain = layer.weights.key.gain
    assert key.gain is not None
    assert gain is not None
    assert torch.equal(key.gain[[0, 2]], gain[[0, 3]])
    assert torch.allclose(key.gain[1], gain[1:3].mean(0))


@pytest.mark.parametrize("fixed", [False, True])
def test_turned_copies_behind_a_normalisation_are_merged_by_maps_without_loss(fixed: bool) -> None:
    """Keys of a group are one vector, turned behind the normalisation by its gains: copies up to a map that is folded."""
    grouping = Grouping(Partition((0, 1, 1, 0)), Partition((0, 0, 1, 2)))
    layer = with_copies(random_layer("locked"), grouping.key.labels, grouping.value.labels, "same")
    layer = with_gains(layer, range(4), each_alone=True)  # a gain of its own in every head
    w, x = layer.weights, activations(seed=7)
    query, key = normalised(w.query, x), normalised(w.key, x)
    flat = key.transpose(0, 1).reshape(len(x), -1)
    second = torch.einsum("qta,qtb->qab", query, query) / len(x)
    moments = replace(
        moments_of(layer),
        key=flat.T @ flat / len(x),
        query_heads=second.reshape(4, 2, HEAD_DIM, HEAD_DIM).sum(1),
    )
    keys = normalised_key_stats(
        moments, Channels.mixing(HEAD_DIM)
    )  # nothing rotates here: any map may be folded
    assert keys.behind_norm
    rule, still = RULES["fold"], replace(layer, frequencies=None)
    made = apply_grouping(w, grouping, keys, value_stats(w, moments), rule, rule, fixed_queries=fixed)
    assert torch.equal(made.key.weight, w.key.weight), "the projection keeps its rows"
    order = list(grouping.query_order(8, fixed=fixed))
    key_of, value_of = (
        [partition.labels[q // 2] for q in order] for partition in (grouping.key, grouping.value)
    )
    before = attend_normalised(still, x)
    merged = grouping.key.labels
    assert close(attend_normalised(still, x, made, key_of, value_of, merged), before)
    same = in_source_shape(made, grouping, fixed_queries=fixed)
    assert same.maps is not None
    assert close(attend_normalised(still, x, same, [merged[q // 2] for q in range(8)], None, merged), before)
    swapped = replace(same, maps=replace(same.maps, query=same.maps.query.flip(0)))
    assert not close(
        attend_normalised(still, x, swapped, [merged[q // 2] for q in range(8)], None, merged), before
    )
