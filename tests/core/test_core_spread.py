"""The spread of groups, against the vectors themselves."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gqakit.core.grouping import Partition
from gqakit.core.within_cluster import WithinClusterError

seeds = st.integers(0, 2**32 - 1)


def vectors(heads: int, seed: int, width: int = 5) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(heads, width, generator=rng, dtype=torch.float64) + 2.0


def explicit(x: torch.Tensor, group: list[int]) -> float:
    return float((x[group] - x[group].mean(0)).square().sum())


def random_partition(heads: int, seed: int) -> Partition:
    rng = random.Random(seed)
    return Partition.of(rng.randrange(heads) for _ in range(heads))


def every_partition(heads: int) -> list[Partition]:
    found = [[0]]
    for _ in range(heads - 1):
        found = [[*labels, label] for labels in found for label in range(max(labels) + 2)]
    return [Partition.of(labels) for labels in found]


def total(spread: WithinClusterError, partition: Partition) -> float:
    return sum(map(spread, partition.groups))


@given(st.integers(1, 8), seeds)
def test_squared_distances_from_the_mean(heads, seed):
    x = vectors(heads, seed)
    spread = WithinClusterError(x @ x.T)
    assert spread.num_heads == heads
    for group in random_partition(heads, seed).groups:
        assert spread(group) == pytest.approx(explicit(x, list(group)), abs=1e-9)
        assert spread(tuple(reversed(group))) == pytest.approx(spread(group), abs=1e-9)
    assert spread((0,)) == 0.0


@given(st.integers(1, 8), seeds)
def test_of_similarity_is_that_of_unit_vectors(heads, seed):
    x = vectors(heads, seed)
    unit = x / x.norm(dim=1, keepdim=True)
    length = torch.rand(heads, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    spread = WithinClusterError.of_similarity((length * x) @ (length * x).T)
    for group in random_partition(heads, seed).groups:
        assert spread(group) == pytest.approx(explicit(unit, list(group)), abs=1e-9)
        similar = spread.inner[list(group)][:, list(group)].sum() / len(group)
        assert spread(group) == pytest.approx(len(group) - float(similar), abs=1e-9)


def test_a_head_of_zeros_has_no_direction_and_no_cost():
    x = vectors(4, 0)
    x[1] = 0
    spread = WithinClusterError.of_similarity(x @ x.T)
    assert spread((1,)) == 0.0
    assert spread((0, 1)) == pytest.approx(0.5)  # the unit vector and 0 lie half a unit from their mean


@given(st.integers(1, 8), seeds)
def test_many_partitions_at_once(heads, seed):
    x = vectors(heads, seed)
    spread = WithinClusterError(x @ x.T)
    partitions = [random_partition(heads, seed + i) for i in range(5)]
    totals = spread.of_labels(torch.tensor([p.labels for p in partitions]))
    assert totals.tolist() == pytest.approx([total(spread, p) for p in partitions], abs=1e-9)


@given(st.integers(2, 8), seeds)
def test_names_of_groups_do_not_matter(heads, seed):
    x = vectors(heads, seed)
    spread = WithinClusterError(x @ x.T)
    labels = torch.tensor(random_partition(heads, seed).labels)
    names = torch.randperm(heads, generator=torch.Generator().manual_seed(seed))
    one, two = spread.of_labels(torch.stack([labels, names[labels]])).tolist()
    assert one == pytest.approx(two, abs=1e-9)
    identity = spread.of_labels(torch.stack([torch.arange(heads), names])).tolist()
    assert identity == pytest.approx([0.0, 0.0], abs=1e-9)


@given(st.integers(2, 8), seeds)
def test_joining_groups_never_lowers_the_cost(heads, seed):
    x = vectors(heads, seed)
    spread, partition = WithinClusterError(x @ x.T), random_partition(heads, seed)
    joined = Partition.of(min(label, max(partition.num_groups - 2, 0)) for label in partition.labels)
    assert total(spread, joined) >= total(spread, partition) - 1e-9


@given(st.integers(1, 7), seeds, st.integers(1, 8))
@settings(max_examples=40)
def test_the_bound_is_below_every_partition(heads, seed, width):
    x = vectors(heads, seed, width)
    spread = WithinClusterError(x @ x.T)
    best = dict.fromkeys(range(1, heads + 1), float("inf"))
    for partition in every_partition(heads):
        best[partition.num_groups] = min(best[partition.num_groups], total(spread, partition))
    scale = 1e-9 * float(spread.inner.trace())
    for count, optimum in best.items():
        assert 0 <= spread.bound(count) <= optimum + scale
    assert spread.bound(1) == pytest.approx(best[1], abs=scale)
    assert spread.bound(heads) == pytest.approx(0, abs=scale)


@given(st.integers(2, 8), seeds)
def test_the_bound_beats_that_of_the_uncentred_gram(heads, seed):
    x = vectors(heads, seed)
    spread = WithinClusterError(x @ x.T)
    spectrum = torch.linalg.eigvalsh(spread.inner)
    for count in range(1, heads + 1):
        plain = float(spectrum[: heads - count].sum())
        assert spread.bound(count) >= plain - 1e-9 * float(spread.inner.trace())


def test_the_bound_is_met_by_clusters_far_apart():
    centres = 100 * torch.eye(3, dtype=torch.float64)
    x = centres.repeat_interleave(3, 0) + 1e-6 * vectors(9, 1, 3)
    spread, planted = WithinClusterError(x @ x.T), Partition.of([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert spread.bound(3) <= total(spread, planted) + 1e-9
    assert spread.bound(2) > 1000
