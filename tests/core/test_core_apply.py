"""Conversion of a layer keeps its function wherever the members of each group are copies of one head.

The function is that of an attention written for these tests (`core_layers.attend`).
"""

from dataclasses import replace

import pytest
import torch
from core_layers import (
    BIASES,
    HEADS,
    STRUCTURES,
    WAYS,
    Layer,
    activations,
    attend,
    both_stats,
    moments_of,
    random_layer,
    turned,
    with_copies,
)
from torch import Tensor

from gqakit.core.apply import apply_grouping, merge_groups
from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.grouping import Grouping, Partition
from gqakit.core.merging import RULES

SHARED = Grouping.shared(Partition((0, 1, 1, 0)))
APART = Grouping(Partition((0, 1, 0, 1)), Partition((0, 1, 1, 2)))


def convert(layer: Layer, grouping: Grouping, rule: str, recorded: bool = False) -> AttentionWeights:
    keys, values = both_stats(layer, moments_of(layer, recorded=recorded))
    return apply_grouping(layer.weights, grouping, keys, values, RULES[rule], RULES[rule])


def loss(layer: Layer, weights: AttentionWeights, grouping: Grouping) -> float:
    """Largest change of the layer's output on activations that no statistics were taken of, relative."""
    x = activations(seed=77)
    before = attend(layer, x)
    after = attend(layer, x, weights, grouping.query_maps(layer.weights.num_heads))
    return float((after - before).abs().max() / before.abs().max())


def tensors(weights: AttentionWeights) -> list[Tensor]:
    """Every tensor of a layer."""
    projections = (weights.query, weights.key, weights.value)
    both = [t for p in projections for t in (p.weight, p.bias) if t is not None]
    return [*both, weights.output]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rule", "biases"), [("fold", ""), ("mean", "qkv"), ("aligned_norm", "qv")])
def test_identity_is_bit_identical(dtype, rule, biases):
    for structure in STRUCTURES:
        layer = random_layer(structure, biases=biases)
        layer = replace(layer, weights=layer.weights.to(dtype))
        out = convert(layer, Grouping.shared(Partition.identity(4)), rule)
        for ours, theirs in zip(tensors(out), tensors(layer.weights), strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_what_only_lone_heads_touch_is_bit_identical(dtype, rule):
    layer = random_layer("rotary", biases="qkv")
    layer = replace(layer, weights=layer.weights.to(dtype))
    grouping = Grouping(Partition((0, 0, 1, 2)), Partition((0, 1, 0, 2)))
    w, out = layer.weights, convert(layer, grouping, rule)
    assert all(t.dtype == dtype for t in tensors(out))
    assert torch.equal(out.key.weight[1:], w.key.weight[2:])
    assert torch.equal(out.key.bias[1:], w.key.bias[2:])
    assert torch.equal(out.value.weight[1:], w.value.weight[[1, 3]])
    order = list(grouping.query_order(8))
    for position, q in enumerate(order):
        if q // 2 in (2, 3):  # its key head is alone
            assert torch.equal(out.query.weight[position], w.query.weight[q])
            assert torch.equal(out.query.bias[position], w.query.bias[q])
        if q // 2 in (1, 3):  # its value head is alone
            assert torch.equal(out.output[position], w.output[q])


@pytest.mark.parametrize("structure", ["partial", "locked"])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("biases", BIASES)
def test_duplicated_heads_make_the_mean_exact(structure, heads, kv_heads, biases):
    for grouping in (SHARED, APART):
        layer = with_copies(
            random_layer(structure, heads, kv_heads, biases),
            grouping.key.labels,
            grouping.value.labels,
            "same",
        )
        out = convert(layer, grouping, "mean")
        assert (out.key.num_heads, out.value.num_heads) == (
            grouping.key.num_groups,
            grouping.value.num_groups,
        )
        assert (out.query.bias is None, out.key.bias is None) == ("q" not in biases, "k" not in biases)
        assert loss(layer, out, grouping) < 1e-9


CASES = [
    *((rule, "same") for rule in sorted(RULES)),
    *((rule, "turned") for rule in ("aligned", "aligned_norm", "fold")),
    ("fold", "scaled"),
]


@pytest.mark.parametrize(("rule", "kind"), CASES)
@pytest.mark.parametrize(
    ("structure", "recorded", "biases"), [(*way, BIASES[i % 3]) for i, way in enumerate(WAYS)]
)
def test_copies_are_merged_without_loss(rule, kind, structure, recorded, biases):
    for grouping, (heads, kv_heads) in ((SHARED, HEADS[0]), (APART, HEADS[1])):
        source = random_layer(structure, heads, kv_heads, biases)
        layer = with_copies(source, grouping.key.labels, grouping.value.labels, kind)
        for stats, partition in zip(
            both_stats(layer, moments_of(layer, recorded=recorded)),
            (grouping.key, grouping.value),
            strict=True,
        ):
            errors = [RULES[rule].error(stats.select(group)) for group in partition.groups]
            assert max(errors) <= 1e-9 * float(stats.energy().sum())
        assert loss(layer, convert(layer, grouping, rule, recorded), grouping) < 1e-6


@pytest.mark.parametrize("structure", ["rotary", "none"])
def test_the_other_rules_do_lose_something(structure):
    """Or the tests above would prove nothing."""
    turned_copies = with_copies(random_layer(structure), SHARED.key.labels, SHARED.value.labels, "turned")
    assert loss(turned_copies, convert(turned_copies, SHARED, "mean"), SHARED) > 0.05
    scaled = with_copies(random_layer(structure), SHARED.key.labels, SHARED.value.labels, "scaled")
    assert loss(scaled, convert(scaled, SHARED, "aligned"), SHARED) > 0.05
    layer = random_layer(structure)
    assert loss(layer, convert(layer, SHARED, "fold"), SHARED) > 0.01


@pytest.mark.parametrize(
    "structure", sorted(set(STRUCTURES) - {"locked"})
)  # nothing is turned in locked heads
def test_alignment_alone_changes_nothing(structure):
    """Every head turned into the common frame and its query heads with it, without averaging."""
    layer = random_layer(structure, 8, 4, "qkv")
    w = layer.weights
    keys, values = both_stats(layer, moments_of(layer))
    (key_merge,), (value_merge,) = (
        merge_groups(stats, Partition.single(4), RULES["aligned"]) for stats in (keys, values)
    )
    assert (key_merge.expand - torch.eye(6, dtype=torch.float64)).abs().max() > 0.1
    readers = [h for h in range(4) for _ in range(2)]
    out = AttentionWeights(
        turned(w.query, [key_merge.expand[h].T for h in readers]),
        turned(w.key, list(4 * key_merge.combine)),
        turned(w.value, list(4 * value_merge.combine)),
        w.output @ value_merge.expand[readers],
    )
    assert loss(layer, out, Grouping.shared(Partition.identity(4))) < 1e-9


@pytest.mark.parametrize("structure", ["rotary", "locked"])
@pytest.mark.parametrize("grouping", [SHARED, APART])
def test_permuting_query_heads_with_their_output_columns_is_exact(structure, grouping):
    layer = random_layer(structure, biases="qkv")
    w, order = layer.weights, list(grouping.query_order(8))
    assert order != list(range(8))
    query = Projection(w.query.weight[order], w.query.bias[order])
    moved = replace(w, query=query, output=w.output[order])
    x = activations()
    source_maps = ([q // 2 for q in order],) * 2
    torch.testing.assert_close(attend(layer, x, moved, source_maps), attend(layer, x), rtol=0, atol=1e-12)


def test_query_heads_come_out_in_query_order():
    layer = random_layer("rotary", biases="qkv")
    out, order = convert(layer, SHARED, "mean"), list(SHARED.query_order(8))
    assert torch.equal(out.query.weight, layer.weights.query.weight[order])
    assert torch.equal(out.query.bias, layer.weights.query.bias[order])
    assert torch.equal(out.output, layer.weights.output[order])
    assert torch.equal(out.key.weight[0], (layer.weights.key.weight[0] + layer.weights.key.weight[3]) / 2)


def test_permuting_kv_heads_permutes_the_result():
    layer = random_layer("rotary", biases="qv")
    w, swap = layer.weights, [2, 0, 3, 1]
    readers = [2 * h + i for h in swap for i in range(2)]

    def moved(p: Projection, index: list[int]) -> Projection:
        return Projection(p.weight[index], None if p.bias is None else p.bias[index])

    other = replace(
        layer,
        weights=AttentionWeights(
            moved(w.query, readers), moved(w.key, swap), moved(w.value, swap), w.output[readers]
        ),
    )
    there = Grouping.shared(Partition.of(SHARED.key.labels[h] for h in swap))
    x = activations()
    for rule in sorted(RULES):
        one = attend(layer, x, convert(layer, SHARED, rule), SHARED.query_maps(8))
        two = attend(other, x, convert(other, there, rule), there.query_maps(8))
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * float(one.abs().max()), msg=rule)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_mixed_rules(structure):
    """Keys by one rule, values by another: each acts on its own projection only."""
    layer = random_layer(structure, biases="qkv")
    keys, values = both_stats(layer, moments_of(layer))
    out = apply_grouping(layer.weights, SHARED, keys, values, RULES["mean"], RULES["fold"])
    mean, fold = convert(layer, SHARED, "mean"), convert(layer, SHARED, "fold")
    assert torch.equal(out.key.weight, mean.key.weight)
    assert torch.equal(out.query.weight, mean.query.weight)
    assert torch.equal(out.value.weight, fold.value.weight)
    assert torch.equal(out.output, fold.output)


def test_fold_error_is_what_the_output_loses():
    """The stated error of the values is the error of the output heads, before they add up."""
    layer = random_layer("none", biases="v")
    x = activations()
    moments = replace(moments_of(layer), value=None)
    keys, values = both_stats(layer, moments)
    out = apply_grouping(layer.weights, SHARED, keys, values, RULES["fold"], RULES["fold"])
    lost, order = 0.0, SHARED.query_order(8)
    new_of = SHARED.query_maps(8)[1]
    for position, q in enumerate(order):
        w = layer.weights
        was = (x @ w.value.weight[q // 2].T + w.value.bias[q // 2]) @ w.output[q].T
        new = new_of[position]
        now = (x @ out.value.weight[new].T + out.value.bias[new]) @ out.output[position].T
        lost += float((was - now).square().sum(-1).mean())
    stated = sum(RULES["fold"].error(values.select(g)) for g in SHARED.value.groups)
    assert lost == pytest.approx(stated, rel=1e-9)


def test_normalised_keys_are_brought_to_one_length_before_they_are_averaged():
    layer = random_layer("locked", biases="qkv")
    keys, _ = both_stats(layer, moments_of(layer))
    assert keys.scale.max() > 1.1 * keys.scale.min()
    rows = keys.scale[:, None, None] * layer.weights.key.augmented()
    out = convert(layer, SHARED, "mean").key.augmented()
    groups = [[0, 3], [1, 2]]
    torch.testing.assert_close(
        out, torch.stack([rows[each].sum(0) / keys.scale[each].sum() for each in groups])
    )


def test_copies_before_a_normalisation_keep_their_length():
    """It matters by the constant that the normalisation adds to the mean square."""
    layer = with_copies(random_layer("locked", biases="qkv"), SHARED.key.labels, SHARED.value.labels, "same")
    out = convert(layer, SHARED, "mean").key.augmented()
    torch.testing.assert_close(out, layer.weights.key.augmented()[[0, 1]])
