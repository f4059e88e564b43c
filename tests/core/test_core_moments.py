"""What one statistic says about heads, against averages over the activations it was taken from."""

import pytest
import torch
from core_layers import (
    BIASES,
    HEADS,
    STRUCTURES,
    activations,
    both_stats,
    moments_of,
    project,
    random_layer,
    second_moment,
)

from gqakit.core.attention import Projection
from gqakit.core.rope import Channels
from gqakit.core.statistics import (
    LayerStatistics,
    head_gram,
    key_stats,
    own_moments,
    value_stats,
    weight_inner,
)

close = torch.testing.assert_close


@pytest.mark.parametrize("biases", BIASES)
def test_gram_is_the_average_over_activations(biases):
    layer, x = random_layer("none", biases=biases), activations()
    for projection in (layer.weights.query, layer.weights.key, layer.weights.value):
        heads = project(projection, x)
        explicit = torch.einsum("hta,gtb->hagb", heads, heads) / len(x)
        close(head_gram(projection, second_moment(x)), explicit)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("biases", BIASES)
def test_key_metric_is_the_logit_error(heads, kv_heads, biases):
    layer, x = random_layer("rotary", heads, kv_heads, biases), activations()
    metric = key_stats(layer.weights, moments_of(layer), layer.channels).metric
    query = project(layer.weights.query, x)
    error = torch.arange(6.0, dtype=torch.float64)
    for h in range(kv_heads):
        readers = [q for q in range(heads) if q // (heads // kv_heads) == h]
        explicit = sum((query[q] @ error).square().mean() for q in readers)
        close(error @ metric[h] @ error, explicit)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_value_metric_is_the_output_error(heads, kv_heads):
    layer = random_layer("none", heads, kv_heads)
    metric = value_stats(layer.weights, moments_of(layer)).metric
    error = torch.arange(6.0, dtype=torch.float64)
    for h in range(kv_heads):
        readers = [q for q in range(heads) if q // (heads // kv_heads) == h]
        explicit = sum((layer.weights.output[q] @ error).square().sum() for q in readers)
        close(error @ metric[h] @ error, explicit)


def test_values_use_their_own_moment_where_there_is_one():
    layer = random_layer("rotary", biases="v")
    both = moments_of(layer)
    close(value_stats(layer.weights, both).gram, head_gram(layer.weights.value, both.value))
    alone = LayerStatistics(both.input)
    close(value_stats(layer.weights, alone).gram, head_gram(layer.weights.value, both.input))
    assert value_stats(layer.weights, both).channels == Channels.mixing(6)


def test_locked_keys_are_scaled_to_equal_length():
    layer, x = random_layer("locked", biases="qkv"), activations()
    stats = key_stats(layer.weights, moments_of(layer), layer.channels)
    scaled = stats.scale[:, None, None] * project(layer.weights.key, x)
    length = scaled.square().sum(-1).mean(-1)
    close(length, length[0].expand(4))
    close(stats.gram, torch.einsum("hta,gtb->hagb", scaled, scaled) / len(x))
    energy = project(layer.weights.query, x).square().mean((1, 2)).view(4, 2).sum(1)
    close(stats.metric, energy[:, None, None] * torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_energy_is_the_cost_of_nothing_in_their_place(structure):
    layer, x = random_layer(structure, biases="qkv"), activations()
    keys, values = both_stats(layer, LayerStatistics(second_moment(x)))
    value, out = project(layer.weights.value, x), layer.weights.output
    explicit = [
        sum((value[h] @ out[q].T).square().sum(-1).mean() for q in (2 * h, 2 * h + 1)) for h in range(4)
    ]
    close(values.energy(), torch.stack(explicit))
    if structure == "none":
        key, query = project(layer.weights.key, x), project(layer.weights.query, x)
        explicit = [sum((query[q] @ key[h].T).square().mean() for q in (2 * h, 2 * h + 1)) for h in range(4)]
        close(keys.energy(), torch.stack(explicit))
    assert bool((keys.energy() > 0).all())


@pytest.mark.parametrize("recorded", [False, True])
def test_selection_is_the_statistics_of_the_selected(recorded):
    layer = random_layer("rotary")
    stats = key_stats(layer.weights, moments_of(layer, recorded=recorded), layer.channels)
    chosen = stats.select((3, 1))
    assert chosen.num_heads == 2
    close(chosen.gram[0, :, 1, :], stats.gram[3, :, 1, :])
    close(chosen.gram[1, :, 1, :], stats.gram[1, :, 1, :])
    close(chosen.metric, stats.metric[[3, 1]])
    if recorded:
        close(chosen.distances, stats.distances[[3, 1]])
    else:
        assert chosen.distances is None


def test_identity_moments_are_plain_inner_products():
    layer = random_layer("none", biases="k")
    keys = key_stats(layer.weights, LayerStatistics.identity(10), layer.channels)
    rows = torch.cat([layer.weights.key.weight, layer.weights.key.bias[..., None]], -1)
    close(keys.gram, torch.einsum("hax,gbx->hagb", rows, rows))


def test_weight_inner_is_that_of_the_flattened_heads():
    w = random_layer("rotary", biases="qv").weights
    flat = torch.cat([w.key.weight.flatten(1), w.value.weight.flatten(1), w.value.bias], 1)
    close(weight_inner(w.key) + weight_inner(w.value), flat @ flat.T)


def test_rotation_is_averaged_over_where_the_members_look():
    layer = random_layer("rotary")
    stats = key_stats(layer.weights, moments_of(layer, recorded=True), layer.channels)
    pair = stats.select((0, 2))
    one = pair.distances[0].clone()
    assert pair.rotation is not None
    x = torch.randn(6, 6, dtype=torch.float64)
    seen = [stats.select((h,)).after_rope(x) for h in (0, 2)]
    close(pair.after_rope(x), (seen[0] + seen[1]) / 2)
    assert not torch.equal(one, pair.distances[1])
    assert key_stats(layer.weights, moments_of(layer), Channels.mixing(6)).rotation is None


def test_own_moments_are_the_diagonal_blocks_of_the_gram():
    generator = torch.Generator().manual_seed(3)
    projection = Projection(torch.randn(5, 4, 7, generator=generator), torch.randn(5, 4, generator=generator))
    half = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    moment = half @ half.T
    gram = head_gram(projection, moment)
    blocks = torch.stack([gram[head, :, head] for head in range(5)])
    torch.testing.assert_close(own_moments(projection, moment), blocks, rtol=1e-12, atol=1e-12)
