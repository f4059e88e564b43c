"""AsymGQA: its search, its variants and its options."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods_layers import HEAD_DIM, WIDTH, forbidden, heads_of, normal, random_heads, two_faced

from gqakit.core.grouping import Partition
from gqakit.core.key_allocation import equal_allocation
from gqakit.core.within_cluster import WithinClusterError
from gqakit.errors import UsageError
from gqakit.grouping_methods.asymgqa import AsymGQA, Walk
from gqakit.grouping_methods.base import Sizes
from gqakit.grouping_methods.partition_search import exact_partitions

LABELS = [0, 1, 2, 0, 1, 2, 0, 0, 2]


def similarities(num_heads: int, seed: int) -> WithinClusterError:
    points = normal(num_heads, 5, seed=seed)
    return WithinClusterError.of_similarity(points @ points.T)


def total(spread: WithinClusterError, partition: Partition) -> float:
    return sum(map(spread, partition.groups))


@pytest.mark.parametrize("similarity", ["activation", "weight"])
def test_finds_heads_whose_channels_are_in_another_order(similarity):
    base = normal(3, HEAD_DIM, 3 * WIDTH)
    heads = torch.stack([base[label][torch.randperm(HEAD_DIM)] for label in LABELS])
    method = AsymGQA(similarity=similarity)
    found = method.group(heads_of(heads, cost=forbidden), 3, sizes=Sizes(1, 7), rng=random.Random(0))
    assert list(found.labels) == LABELS


def test_activations_or_weights_decide():
    text, weights = [0, 1, 2, 1, 0, 2, 0], [0, 0, 1, 2, 1, 2, 2]
    heads, moment = two_faced(text, weights)
    layer = heads_of(heads, moment=moment)
    for similarity, labels in (("activation", text), ("weight", weights)):
        method = AsymGQA().configured({"similarity": similarity})
        assert list(method.group(layer, 3, sizes=Sizes(1, 5), rng=random.Random(1)).labels) == labels


def test_weights_are_activations_of_white_text():
    white = heads_of(*normal(2, 9, HEAD_DIM, WIDTH))
    coloured = random_heads(9)
    for heads, same in ((white, True), (coloured, False)):
        one, two = (AsymGQA(similarity=similarity) for similarity in ("activation", "weight"))
        assert torch.equal(one.objective(heads).inner, two.objective(heads).inner) == same
        if same:
            found = [m.group(heads, 4, sizes=Sizes(1, 6), rng=random.Random(3)) for m in (one, two)]
            assert found[0] == found[1]


@pytest.mark.parametrize(("num_heads", "num_groups"), [(8, 4), (7, 3), (16, 6), (5, 5), (6, 1)])
def test_symmetric_keeps_groups_as_equal_as_can_be(num_heads, num_groups):
    method, sizes = AsymGQA(symmetric=True), Sizes(1, num_heads - num_groups + 1)
    for seed in range(3):
        found = method.search(similarities(num_heads, seed), num_groups, sizes=sizes, rng=random.Random(seed))
        assert tuple(sorted(found.sizes, reverse=True)) == equal_allocation(num_heads, num_groups)


def test_asymmetric_makes_use_of_unequal_groups():
    points = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0]] + [[-1.0, 0.1]] * 2, dtype=torch.float64)
    spread = WithinClusterError.of_similarity(points @ points.T)
    found = AsymGQA().search(spread, 3, sizes=Sizes(1, 6), rng=random.Random(0))
    assert found.groups == ((0, 1, 2, 3, 4), (5,), (6, 7))
    for limits in (Sizes(2, 6), Sizes(1, 4)):
        assert limits.hold(AsymGQA().search(spread, 3, sizes=limits, rng=random.Random(0)))


@pytest.mark.parametrize("seed", range(5))
def test_with_equal_sizes_asymmetric_is_symmetric(seed):
    spread = similarities(12, seed)
    one, two = (
        AsymGQA(symmetric=symmetric, iterations=300).search(
            spread, 4, sizes=Sizes(3, 3), rng=random.Random(seed)
        )
        for symmetric in (False, True)
    )
    assert one == two
    assert one.is_equal


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_finds_the_optimum_of_twelve_heads(symmetric, seed):
    spread = similarities(12, seed)
    sizes = Sizes(3, 3) if symmetric else Sizes(1, 9)
    found = AsymGQA(symmetric=symmetric).search(spread, 4, sizes=sizes, rng=random.Random(seed))
    best = exact_partitions(12, {4: sizes}, spread)[4]
    assert total(spread, found) == pytest.approx(total(spread, best), rel=0.01)


@pytest.mark.parametrize("p_reset", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("p_accept", [0.0, 0.5, 1.0])
def test_longer_searches_are_never_worse_and_sizes_always_hold(p_accept, p_reset):
    spread, sizes = similarities(13, 1), Sizes(2, 4)
    before = float("inf")
    for iterations in (1, 10, 100, 1000):  # the same steps, and more
        method = AsymGQA(iterations=iterations, p_accept=p_accept, p_reset=p_reset)
        found = method.search(spread, 4, sizes=sizes, rng=random.Random(2))
        assert sizes.hold(found)
        assert total(spread, found) <= before + 1e-9
        before = total(spread, found)


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=12),
    st.booleans(),
)
def test_gains_are_what_the_spread_falls_by(seed, steps, swaps):
    spread = similarities(9, seed)
    walk = Walk(spread.inner.tolist(), Partition.of([0, 1, 2, 3, 0, 1, 2, 3, 0]))
    for head, partner in steps:
        own, other = walk.labels[head], walk.labels[partner]
        if own == other or (not swaps and len(walk.members[own]) == 1):
            continue
        before = Partition.of(walk.labels)
        change = walk.swap(head, partner) if swaps else walk.move(head, other)
        walk.apply(change)
        after = Partition.of(walk.labels)
        assert change.gain == pytest.approx(total(spread, before) - total(spread, after), abs=1e-9)
        assert sorted(tuple(sorted(group)) for group in walk.members) == sorted(after.groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "keys"}, "similarity = 'keys' must be one of activation, weight"),
        ({"symmetric": "yes"}, "symmetric = 'yes' must be true or false"),
        ({"iterations": 0}, "iterations = 0 must be at least 1"),
        ({"iterations": 2.5}, "iterations = 2.5 must be a whole number"),
        ({"neighbours": True}, "neighbours = True must be a whole number"),
        ({"p_accept": 1.1}, "p_accept = 1.1 must be at least 0 and at most 1"),
        ({"p_reset": -0.1}, "p_reset = -0.1 must be at least 0 and at most 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        AsymGQA(**options)
    with pytest.raises(UsageError, match=f"method asymgqa: {message}"):
        AsymGQA().configured(options)


def test_statistics_that_are_no_numbers_are_refused():
    heads = random_heads(4)
    broken = replace(heads.sides[0], gram=heads.sides[0].gram * float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        AsymGQA().objective(replace(heads, sides=(broken,)))
