"""`fold` and `aligned` against solutions computed another way."""

from dataclasses import replace

import pytest
import torch
from core_layers import (
    BIASES,
    HEADS,
    activations,
    both_stats,
    moments_of,
    project,
    random_layer,
    second_moment,
)
from torch import Tensor

from gqakit.core.merging import RULES
from gqakit.core.merging.base import residual
from gqakit.core.statistics import LayerStatistics

FOLD = RULES["fold"]
GROUP = (0, 1, 3)


def root(moment: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def tail(stacked: Tensor, rank: int) -> float:
    """What the best approximation of this rank leaves (Eckart and Young)."""
    return float(torch.linalg.svdvals(stacked)[rank:].square().sum())


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("biases", BIASES)
def test_values_reach_the_eckart_young_bound(heads, kv_heads, biases):
    layer, x = random_layer("rotary", heads, kv_heads, biases), activations()
    w, per_head = layer.weights, heads // kv_heads
    _, stats = both_stats(layer, LayerStatistics(second_moment(x)))
    rows = (
        w.value.weight if w.value.bias is None else torch.cat([w.value.weight, w.value.bias[..., None]], -1)
    )
    width = rows.shape[-1]
    square_root = root(second_moment(x)[:width, :width])
    stacked = torch.cat(
        [
            torch.linalg.qr(w.output[q]).R @ rows[h] @ square_root
            for h in GROUP
            for q in range(h * per_head, (h + 1) * per_head)
        ]
    )
    bound = tail(stacked, 6)
    assert bound > 1e-3
    assert FOLD.error(stats.select(GROUP)) == pytest.approx(bound, rel=1e-8)


@pytest.mark.parametrize("biases", BIASES)
def test_keys_without_rotation_reach_the_bound(biases):
    layer, x = random_layer("none", 8, 4, biases), activations()
    stats, _ = both_stats(layer, LayerStatistics(second_moment(x)))
    query, key = project(layer.weights.query, x), project(layer.weights.key, x)
    stacked = []
    for h in GROUP:
        energy = sum(query[q].T @ query[q] / len(x) for q in (2 * h, 2 * h + 1))
        stacked.append(root(energy) @ key[h].T / len(x) ** 0.5)
    assert FOLD.error(stats.select(GROUP)) == pytest.approx(tail(torch.cat(stacked), 6), rel=1e-8)


@pytest.mark.parametrize("structure", ["rotary", "interleaved", "partial"])
@pytest.mark.parametrize("biases", BIASES)
def test_keys_pair_by_pair_reach_the_complex_bound(structure, biases):
    layer, x = random_layer(structure, 8, 4, biases), activations()
    stats, _ = both_stats(layer, LayerStatistics(second_moment(x)))
    query, key = project(layer.weights.query, x), project(layer.weights.key, x)
    bound = 0.0
    for a, b in zip(layer.channels.first, layer.channels.second, strict=True):
        rows = []
        for h in GROUP:
            energy = sum(query[q][:, [a, b]].square().sum(-1).mean() / 2 for q in (2 * h, 2 * h + 1))
            rows.append(energy.sqrt() * torch.complex(key[h][:, a], key[h][:, b]) / len(x) ** 0.5)
        bound += tail(torch.stack(rows), 1)
    free = list(layer.channels.free)
    if free:
        rows = []
        for h in GROUP:
            energy = sum(query[q][:, free].T @ query[q][:, free] / len(x) for q in (2 * h, 2 * h + 1))
            rows.append(root(energy) @ key[h][:, free].T / len(x) ** 0.5)
        bound += tail(torch.cat(rows), len(free))
    assert FOLD.error(stats.select(GROUP)) == pytest.approx(bound, rel=1e-8)


@pytest.mark.parametrize("structure", ["rotary", "partial", "interleaved"])
@pytest.mark.parametrize("recorded", [False, True])
def test_which_channels_the_maps_mix(structure, recorded):
    layer = random_layer(structure)
    stats, _ = both_stats(layer, moments_of(layer, recorded=recorded))
    first, second, free = layer.channels.first, layer.channels.second, list(layer.channels.free)
    allowed = torch.zeros(6, 6, dtype=torch.bool)
    for a, b in zip(first, second, strict=True):
        allowed[[[a], [b]], [[a, b]]] = True
    for a in free:
        allowed[a, free] = True
    rules = ["aligned", "fold"] if not recorded else ["aligned"]
    for rule in rules:
        merge = RULES[rule].merge(stats.select(GROUP))
        for maps in (merge.combine, merge.expand):
            assert not maps[:, ~allowed].any()
            for a, b in zip(first, second, strict=True):  # a complex number: it commutes with rotation
                torch.testing.assert_close(maps[:, a, a], maps[:, b, b])
                torch.testing.assert_close(maps[:, a, b], -maps[:, b, a])


@pytest.mark.parametrize("structure", ["rotary", "partial", "interleaved"])
@pytest.mark.parametrize("seed", range(8))
def test_recorded_distances_never_make_it_worse_than_its_start(structure, seed):
    layer = random_layer(structure, seed=seed)
    stats, _ = both_stats(layer, moments_of(layer, seed, recorded=True))
    group = stats.select(GROUP)
    start = residual(group, FOLD.merge(replace(group, distances=None)))
    assert FOLD.error(group) <= start


def test_recorded_distances_are_used():
    layer = replace(random_layer("rotary"), frequencies=torch.tensor([0.9, 1e-3, 1e-4], dtype=torch.float64))
    stats, _ = both_stats(layer, moments_of(layer, recorded=True))
    group = stats.select(GROUP)
    start = residual(group, FOLD.merge(replace(group, distances=None)))
    assert FOLD.error(group) < 0.8 * start  # slow pairs share what no complex number can


def test_keys_read_at_one_place_only_are_as_good_as_unrotated(monkeypatch):
    monkeypatch.setattr("gqakit.core.distances.TAIL", 0.0)
    layer = random_layer("rotary")
    distances = torch.tensor([1.0, 0, 0], dtype=torch.float64).expand(4, -1)
    moments = replace(moments_of(layer), distances=distances, frequencies=layer.frequencies)
    stats, _ = both_stats(layer, moments)
    free, _ = both_stats(random_layer("none"), moments)
    bound = FOLD.error(free.select(GROUP))
    assert bound * (1 - 1e-9) <= FOLD.error(stats.select(GROUP)) < 1.05 * bound


@pytest.mark.parametrize("structure", ["rotary", "partial", "interleaved", "none"])
def test_aligned_maps_are_orthogonal_and_agree_best(structure):
    layer = random_layer(structure)
    for stats in both_stats(layer, moments_of(layer)):
        group = stats.select(GROUP)
        merge = RULES["aligned"].merge(group)
        eye = torch.eye(6, dtype=torch.float64)
        torch.testing.assert_close(merge.expand.mT @ merge.expand, eye.expand(3, -1, -1))
        torch.testing.assert_close(merge.combine, merge.expand.mT / 3)

        def spread(turns: Tensor, gram: Tensor = group.gram) -> float:
            moved = torch.einsum("hba,hbgc,gcd->hagd", turns, gram, turns)
            return float(torch.einsum("haha->", moved) - torch.einsum("haga->", moved) / 3)

        best = spread(merge.expand)
        assert best < spread(eye.expand(3, -1, -1).clone())
        pairs = list(zip(layer.channels.first, layer.channels.second, strict=True))
        turning = stats.channels.first == layer.channels.first and pairs
        for a, b in pairs if turning else [(0, 1), (2, 5)]:
            for angle in (-0.02, 0.02):  # no small allowed turn of a member helps
                turns = merge.expand.clone()
                small = eye.clone()
                small[[a, b], [a, b]] = torch.tensor(angle).double().cos()
                small[a, b], small[b, a] = (
                    -torch.tensor(angle).double().sin(),
                    torch.tensor(angle).double().sin(),
                )
                turns[1] = turns[1] @ small
                assert spread(turns) > best


def test_shared_head_is_as_long_as_its_members():
    layer, x = random_layer("rotary", biases="qkv"), activations()
    for stats, projection in zip(
        both_stats(layer, LayerStatistics(second_moment(x))),
        (layer.weights.key, layer.weights.value),
        strict=True,
    ):
        members = project(projection, x)[list(GROUP)]
        shared = torch.einsum("hab,htb->ta", FOLD.merge(stats.select(GROUP)).combine, members)
        assert shared.square().mean() == pytest.approx(float(members.square().mean()), rel=0.3)
