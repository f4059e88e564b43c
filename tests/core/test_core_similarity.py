"""How alike heads are, against their activations."""

from dataclasses import replace

import pytest
import torch
from core_layers import (
    HEAD_DIM,
    STRUCTURES,
    Layer,
    activations,
    both_stats,
    key_map,
    project,
    random_layer,
    second_moment,
    with_copies,
)
from torch import Tensor

from gqakit.core.merging.aligned import nearest_turn
from gqakit.core.similarity import (
    aligned_similarity,
    averaged,
    best_agreement,
    channel_similarity,
    flat_inner,
)
from gqakit.core.statistics import HeadStats, LayerStatistics

KV_HEADS = 4


def stats_and_heads(layer: Layer) -> list[tuple[HeadStats, Tensor]]:
    """Keys and values: their statistics, and their activations `[heads, tokens, head_dim]`."""
    x = activations()
    sides = both_stats(layer, LayerStatistics(second_moment(x)))
    return list(zip(sides, (project(layer.weights.key, x), project(layer.weights.value, x)), strict=True))


def explicit_channel_similarity(one: Tensor, two: Tensor) -> float:
    cosines = torch.tensor(
        [
            [float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for b in two.unbind(1)]
            for a in one.unbind(1)
        ]
    )
    return 0.5 * float(cosines.amax(1).mean() + cosines.amax(0).mean())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("biases", ["", "qkv"])
def test_channel_similarity_is_that_of_activations(structure, biases):
    for stats, heads in stats_and_heads(random_layer(structure, biases=biases)):
        found = channel_similarity(stats)
        assert torch.equal(found, found.T)
        for h in range(KV_HEADS):
            assert found[h, h] == 1.0
            for g in range(h):
                assert float(found[h, g]) == pytest.approx(
                    explicit_channel_similarity(heads[h], heads[g]), abs=1e-6
                )


def test_channel_similarity_does_not_see_order_and_length_of_channels():
    layer = random_layer("none")
    (stats, _), _ = stats_and_heads(layer)
    key = layer.weights.key
    length = 0.1 + 3 * torch.rand(KV_HEADS, HEAD_DIM, 1, generator=torch.Generator().manual_seed(0)).double()
    weight = (key.weight * length)[:, [3, 1, 0, 5, 2, 4]]
    other = replace(layer, weights=replace(layer.weights, key=replace(key, weight=weight)))
    torch.testing.assert_close(channel_similarity(stats_and_heads(other)[0][0]), channel_similarity(stats))


def test_a_channel_of_zeros_resembles_nothing():
    layer = random_layer("none")
    weight = layer.weights.key.weight.clone()
    weight[1, :3] = 0
    weight[2] = 0
    layer = replace(layer, weights=replace(layer.weights, key=replace(layer.weights.key, weight=weight)))
    stats = stats_and_heads(layer)[0][0]
    for similarity in (channel_similarity, aligned_similarity):
        found = similarity(stats)
        assert bool(torch.isfinite(found).all())
        assert found.diagonal().tolist() == [1.0] * KV_HEADS
        assert found[2, [0, 1, 3]].tolist() == [0.0] * 3


def turned_cosine(one: Tensor, two: Tensor, turn: Tensor) -> float:
    """The cosine of a head and another that was turned."""
    return float((one * (two @ turn.T)).sum() / one.norm() / two.norm())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_no_turn_of_activations_agrees_better_and_one_as_well(structure):
    rng = torch.Generator().manual_seed(7)
    for stats, heads in stats_and_heads(random_layer(structure)):
        found = aligned_similarity(stats)
        for h, g in [(0, 1), (2, 3), (3, 1)]:
            best = torch.eye(HEAD_DIM, dtype=torch.float64)
            if not stats.channels.locked:
                best = nearest_turn((heads[h].T @ heads[g])[None], stats.channels)[0]
                turns = [key_map(stats.channels, rng, scaled=False) for _ in range(20)]
                assert max(turned_cosine(heads[h], heads[g], t) for t in turns) <= float(found[h, g]) + 1e-9
            assert turned_cosine(heads[h], heads[g], best) == pytest.approx(float(found[h, g]), abs=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", ["same", "turned"])
def test_turned_copies_are_entirely_alike(structure, kind):
    labels = [0, 1, 0, 1]
    layer = with_copies(random_layer(structure), labels, labels, kind)
    for stats, _ in stats_and_heads(layer):
        found = aligned_similarity(stats)
        assert found[0, 2] == pytest.approx(1.0)
        assert found[1, 3] == pytest.approx(1.0)
        assert found[0, 1] < 0.99


@pytest.mark.parametrize("structure", STRUCTURES)
def test_best_agreement_is_what_the_nearest_turn_attains(structure):
    channels = STRUCTURES[structure]
    cross = torch.randn(
        3, 2, HEAD_DIM, HEAD_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    found = best_agreement(cross, channels)
    assert found.shape == (3, 2)
    eye = torch.eye(HEAD_DIM, dtype=torch.float64)
    for one, agreement in zip(cross.flatten(0, 1), found.flatten().tolist(), strict=True):
        turn = eye if channels.locked else nearest_turn(one[None], channels)[0]
        assert float((turn * one).sum()) == pytest.approx(agreement)


def test_flat_inner_adds_up_sides_of_unit_mean_energy():
    pairs = stats_and_heads(random_layer("rotary", biases="qkv"))
    expected = torch.zeros(KV_HEADS, KV_HEADS, dtype=torch.float64)
    for _, heads in pairs:
        flat = heads.flatten(1)
        expected += flat @ flat.T / flat.square().sum(1).mean()
    torch.testing.assert_close(flat_inner([stats for stats, _ in pairs]), expected)
    assert float(flat_inner([pairs[1][0]]).trace()) == pytest.approx(KV_HEADS)


def test_averaged_over_the_sides_that_are_given():
    (key, _), (value, _) = stats_and_heads(random_layer("rotary"))
    both = averaged(channel_similarity, [key, value])
    torch.testing.assert_close(both, (channel_similarity(key) + channel_similarity(value)) / 2)
    assert torch.equal(averaged(channel_similarity, [value]), channel_similarity(value))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad):
    stats = stats_and_heads(random_layer("none"))[0][0]
    gram = stats.gram.clone()
    gram[1, 2, 3, 4] = bad
    broken = replace(stats, gram=gram)
    for similarity in (channel_similarity, aligned_similarity, lambda s: flat_inner([s])):
        with pytest.raises(ValueError, match="not finite"):
            similarity(broken)
