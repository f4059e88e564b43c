"""What no grouping and no merge rule can beat."""

import random
from dataclasses import replace

import pytest
import torch
from core_layers import STRUCTURES, Layer, both_stats, moments_of, random_layer, with_copies

from gqakit.core.grouping import Partition
from gqakit.core.merging import RULES, bound
from gqakit.core.merging.bound import low_rank_bound
from gqakit.core.statistics import HeadStats

KV_HEADS = 5


def sides_of(layer: Layer, recorded: bool = True) -> tuple[HeadStats, HeadStats]:
    return both_stats(layer, moments_of(layer, recorded=recorded))


def random_sides(structure: str, seed: int = 0, recorded: bool = True) -> tuple[HeadStats, HeadStats]:
    return sides_of(random_layer(structure, 2 * KV_HEADS, KV_HEADS, "qkv", seed), recorded)


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize(
    ("structure", "recorded"), [("rotary", True), ("partial", True), ("none", False), ("locked", False)]
)
def test_below_the_error_of_every_partition(rule, structure, recorded):
    rng = random.Random(f"{rule}/{structure}")
    for seed in range(3):
        for stats in random_sides(structure, seed, recorded):
            scale = float(stats.energy().sum())
            for _ in range(4):
                partition = Partition.of(rng.randrange(KV_HEADS) for _ in range(KV_HEADS))
                error = sum(RULES[rule].error(stats.select(group)) for group in partition.groups)
                assert 0 <= low_rank_bound(stats, partition.num_groups) <= error + 1e-9 * scale


@pytest.mark.parametrize("structure", STRUCTURES)
def test_met_by_fold_for_one_group_of_free_channels(structure):
    key, value = random_sides(structure)
    for stats in (value, key) if structure == "none" else (value,):
        assert low_rank_bound(stats, 1) == pytest.approx(RULES["fold"].error(stats))
        assert low_rank_bound(stats, 1) > 0


@pytest.mark.parametrize("structure", ["rotary", "partial", "interleaved"])
def test_close_for_rotary_keys_that_hardly_turn_and_look_at_the_same_distances(structure, monkeypatch):
    monkeypatch.setattr(bound, "DISTANCES", 10_000)
    layer = random_layer(structure, 2 * KV_HEADS, KV_HEADS, "qkv")
    frequencies = torch.full((len(layer.channels.first),), 1e-9, dtype=torch.float64)
    moments = replace(moments_of(layer, recorded=True), frequencies=frequencies)
    assert moments.distances is not None
    together = replace(moments, distances=moments.distances[:1].expand(KV_HEADS, -1).clone())
    (same, _), (apart, _) = both_stats(layer, together), both_stats(layer, moments)
    error = RULES["fold"].error(same)
    assert 0.9 * error <= low_rank_bound(same, 1) <= error
    assert low_rank_bound(apart, 1) < 0.9 * low_rank_bound(same, 1)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_nothing_is_lost_with_a_group_for_every_head(structure):
    for stats in random_sides(structure):
        assert low_rank_bound(stats, KV_HEADS) == 0.0


@pytest.mark.parametrize("structure", STRUCTURES)
def test_falls_with_the_number_of_groups(structure):
    for stats in random_sides(structure):
        bounds = [low_rank_bound(stats, count) for count in range(1, KV_HEADS + 1)]
        assert bounds == sorted(bounds, reverse=True)
        assert bounds[0] > 0  # with recorded distances something is known of rotary keys too


@pytest.mark.parametrize("structure", STRUCTURES)
def test_no_more_than_0_for_copies(structure):
    labels = [0, 1, 0, 1]
    layer = with_copies(random_layer(structure), labels, labels, "turned")
    for stats in sides_of(layer):
        scale = float(stats.energy().sum())
        assert low_rank_bound(stats, 2) == pytest.approx(0, abs=1e-9 * scale)


@pytest.mark.parametrize("structure", ["rotary", "partial", "interleaved"])
def test_nothing_is_known_of_rotary_keys_without_distances(structure):
    key, value = random_sides(structure, recorded=False)
    assert low_rank_bound(key, 1) == 0.0
    assert low_rank_bound(value, 1) > 0.0
