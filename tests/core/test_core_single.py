"""Inner products in float32, as wide layers have them, against float64: errors, bounds, maps."""

import itertools
from dataclasses import replace

import pytest
import torch
from core_layers import both_stats, moments_of, random_layer

from gqakit.core import statistics
from gqakit.core.merging import RULES, fold
from gqakit.core.merging.batch import GroupBatch, alternate, fold_pairwise
from gqakit.core.merging.bound import low_rank_bound
from gqakit.core.statistics import key_stats, own_moments, value_stats

HEADS = 6


@pytest.fixture(params=["rotary", "partial", "none"])
def both(request, monkeypatch):
    """Keys' and values' statistics in float64, then in float32."""
    layer = random_layer(request.param, 2 * HEADS, HEADS, "qkv", 3)
    moments = moments_of(layer, recorded=request.param != "none")
    double = both_stats(layer, moments)
    monkeypatch.setattr(statistics, "SINGLE", 1)
    return double, both_stats(layer, moments)


def test_they_are_in_single_precision_and_symmetric(both):
    for double, single in zip(*both, strict=True):
        assert not double.single
        assert single.single
        flat = single.gram.flatten(2).flatten(0, 1)
        assert torch.equal(flat, flat.T)
        assert torch.allclose(
            single.gram.double(), double.gram, rtol=0, atol=1e-5 * float(double.gram.abs().max())
        )


@pytest.mark.parametrize("positions", ["rotary", "none"])
def test_what_settled_groups_need_is_the_same(monkeypatch, positions):
    """Of pairs of heads in one group; those of different groups, and of heads that stay alone, are not worked out."""
    monkeypatch.setattr(statistics, "SINGLE", 1)
    monkeypatch.setattr(statistics, "_ROWS_AT_ONCE", 4)
    layer = random_layer(positions, 2 * HEADS, HEADS, "qkv", 3)
    moments, groups = moments_of(layer), [(0, 3, 4), (1, 2), (5,)]
    pairs = (
        (key_stats(layer.weights, moments, layer.channels, *more) for more in ((), (groups,))),
        (value_stats(layer.weights, moments, *more) for more in ((), (groups,))),
    )
    together = torch.tensor(
        [[any({a, b} <= {*g} for g in groups[:2]) for a in range(HEADS)] for b in range(HEADS)]
    )
    for whole, within in pairs:
        assert torch.equal(whole.metric, within.metric)
        assert torch.allclose(within.gram, whole.gram * together[:, None, :, None], rtol=1e-5, atol=1e-5)
        assert not within.gram[5].any()
        flat = within.gram.flatten(2).flatten(0, 1)
        assert torch.equal(flat, flat.T)


def test_own_moments_by_half_of_the_moment_are_those_by_the_whole(monkeypatch):
    layer = random_layer("rotary", 2 * HEADS, HEADS, "qkv", 3)
    moment = moments_of(layer).input
    whole = own_moments(layer.weights.query, moment)
    monkeypatch.setattr(statistics, "SINGLE", 1)
    monkeypatch.setattr(statistics, "_ROWS_AT_ONCE", 4)
    half = own_moments(layer.weights.query, moment)
    assert half.dtype == torch.float64
    assert torch.allclose(half, whole, rtol=0, atol=1e-6 * float(whole.abs().max()))
    assert torch.equal(half, half.mT)


def test_errors_bounds_and_energies_are_the_same_to_four_digits(both):
    groups = [group for size in (2, 3, 4) for group in itertools.combinations(range(HEADS), size)]
    for double, single in zip(*both, strict=True):
        energy = float(double.energy().sum())
        assert float(single.energy().sum()) == pytest.approx(energy, rel=1e-5)
        for rule in ("fold", "mean"):
            exact, quick = (RULES[rule].costs(stats) for stats in (double, single))
            for one, other in zip(exact.many(groups), quick.many(groups), strict=True):
                # fold of rotated keys is scored by other rounds of the same alternation
                near = 0.2 * one if rule == "fold" and double.channels.first else 1e-4 * energy
                assert abs(one - other) <= near + 1e-4 * energy
        for count in range(1, HEADS):
            few = low_rank_bound(single, count)
            assert few <= low_rank_bound(double, count) + 1e-9 * energy  # rounding never makes it no bound
            if not double.channels.first:
                assert few == pytest.approx(low_rank_bound(double, count), abs=1e-4 * energy)


def test_maps_are_made_in_double_precision(both):
    for double, single in zip(*both, strict=True):
        one, other = (RULES["fold"].error(stats.select([0, 2, 3])) for stats in (double, single))
        assert other == pytest.approx(one, rel=1e-3)
        assert RULES["fold"].merge(single.select([0, 2])).combine.dtype == torch.float64


def test_going_further_each_round_explains_more(both):
    (keys, _), _ = both
    if not keys.channels.first:
        pytest.skip("nothing turns")
    batch = GroupBatch.of(keys, list(itertools.combinations(range(HEADS), 3)))
    start = fold_pairwise(batch)[0]
    plain, further = (alternate(batch, start, 6, overshoot=by)[2] for by in (0.0, 1.0))
    assert float(further.sum()) > float(plain.sum())


@pytest.mark.parametrize("common", [0.0, 1e4], ids=["alike", "one direction"])
def test_a_wide_head_is_merged_with_fewer_rounds_in_float32_to_no_greater_error(monkeypatch, common):
    """Also where all heads move along one direction far more than along any other, as biases of keys make them."""
    layer = random_layer("rotary", 2 * HEADS, HEADS, "qkv", 5)
    keys, _ = both_stats(layer, moments_of(layer, recorded=True))
    one = torch.randn(
        keys.gram[..., 0, 0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    scale = common * float(keys.own.diagonal(dim1=1, dim2=2).mean())
    keys = replace(keys, gram=keys.gram + scale * one[:, :, None, None] * one)
    before = RULES["fold"].error(keys)
    monkeypatch.setattr(fold, "_WIDE", 1)
    assert RULES["fold"].error(keys) <= before * (1 + 1e-4)
