"""`residual` is the error averaged over activations, exactly, whatever the maps."""

import pytest
import torch
from core_layers import (
    BIASES,
    HEADS,
    activations,
    both_stats,
    looked_at,
    moments_of,
    project,
    random_layer,
    rotate,
    second_moment,
)
from torch import Tensor

from gqakit.core.merging.base import HeadMerge, residual
from gqakit.core.statistics import HeadStats, LayerStatistics

GROUP = (0, 2, 3)


def random_merge(seed: int = 0) -> HeadMerge:
    rng = torch.Generator().manual_seed(seed)
    return HeadMerge(*torch.randn(2, len(GROUP), 6, 6, generator=rng, dtype=torch.float64))


def shared_head(merge: HeadMerge, members: Tensor) -> Tensor:
    return torch.einsum("hab,htb->ta", merge.combine, members)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("biases", BIASES)
def test_values(heads, kv_heads, biases):
    layer, x = random_layer("rotary", heads, kv_heads, biases), activations()
    _, stats = both_stats(layer, LayerStatistics(second_moment(x)))
    merge, per_head = random_merge(), heads // kv_heads
    value = project(layer.weights.value, x)
    shared = shared_head(merge, value[list(GROUP)])
    explicit = 0.0
    for member, h in enumerate(GROUP):
        error = value[h] - shared @ merge.expand[member].T
        for q in range(h * per_head, (h + 1) * per_head):
            explicit += float((error @ layer.weights.output[q].T).square().sum(-1).mean())
    assert residual(stats.select(GROUP), merge) == pytest.approx(explicit, rel=1e-9)


@pytest.mark.parametrize("structure", ["rotary", "partial", "interleaved", "none"])
@pytest.mark.parametrize("biases", BIASES)
def test_keys_over_all_queries_keys_and_distances(structure, biases):
    layer = random_layer(structure, 8, 4, biases)
    x = activations()
    moments = moments_of(layer, recorded=True)
    stats, _ = both_stats(layer, moments)
    merge = random_merge(1)
    query, key = project(layer.weights.query, x), project(layer.weights.key, x)
    shared = shared_head(merge, key[list(GROUP)])
    share = torch.ones(1) if moments.distances is None else looked_at(moments.distances[list(GROUP)].mean(0))
    explicit = 0.0
    for distance, weight in enumerate(share):
        back = torch.full((len(x),), -float(distance), dtype=torch.float64)
        seen_shared = rotate(shared, back, layer)
        for member, h in enumerate(GROUP):
            error = rotate(key[h], back, layer) - seen_shared @ merge.expand[member].T
            for q in (2 * h, 2 * h + 1):
                explicit += float(weight) * float((query[q] @ error.T).square().mean())
    assert residual(stats.select(GROUP), merge) == pytest.approx(explicit, rel=1e-9)


@pytest.mark.parametrize("structure", ["rotary", "partial"])
def test_without_recorded_distances_all_count_alike(structure, monkeypatch):
    monkeypatch.setattr("gqakit.core.distances.TAIL", 0.0)  # the window is long enough
    layer = random_layer(structure)
    moments = moments_of(layer)
    frequencies = torch.tensor([0.83, 0.31, 0.12], dtype=torch.float64)[: len(layer.frequencies)]
    many = LayerStatistics(moments.input, None, torch.ones(4, 20_000), frequencies)
    unknown, _ = both_stats(layer, moments)
    known, _ = both_stats(layer, many)
    merge = random_merge(2)
    assert residual(known.select(GROUP), merge) == pytest.approx(
        residual(unknown.select(GROUP), merge), rel=5e-3
    )


def test_maps_that_lose_nothing():
    stats: HeadStats = both_stats(random_layer("rotary"), moments_of(random_layer("rotary")))[0].select((1,))
    turn = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    eye = torch.eye(6, dtype=torch.float64)[None]
    assert residual(stats, HeadMerge(eye, eye)) == 0.0
    assert residual(stats, HeadMerge(torch.zeros_like(eye), turn)) == pytest.approx(
        float(stats.energy().sum())
    )
