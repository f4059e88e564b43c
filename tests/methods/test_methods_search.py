"""The search for partitions against brute force, on costs with and without structure."""

import random
from types import SimpleNamespace

import pytest
from methods_brute_force import KINDS, all_partitions, brute_force, random_cost, total
from methods_layers import heads_of, normal

from gqakit.core.grouping import Partition
from gqakit.core.key_allocation import equal_allocation
from gqakit.core.merging.base import GroupCosts
from gqakit.grouping_methods import METHODS
from gqakit.grouping_methods import partition_search as search
from gqakit.grouping_methods.base import Sizes, cut
from gqakit.grouping_methods.local_search import LocalSearch


def local_partition(num_heads, num_groups, cost, *, sizes, rng):
    return LocalSearch(num_heads, cost).partition(num_groups, sizes=sizes, rng=rng)


def limits(num_heads: int, num_groups: int) -> list[Sizes]:
    """Any sizes, equal ones, a loose and a tight cap: those that some partition has."""
    tight = -(-num_heads // num_groups)
    found = [
        Sizes.of(num_heads, num_groups),
        Sizes.of(num_heads, num_groups, equal=True),
        Sizes.of(num_heads, num_groups, most=tight),
        Sizes.of(num_heads, num_groups, most=tight + 1),
        Sizes(2, num_heads) if 2 * num_groups <= num_heads else None,
    ]
    return [sizes for sizes in found if sizes is not None]


def test_the_brute_force_looks_at_everything():
    assert [sum(1 for _ in all_partitions(6, k)) for k in range(1, 7)] == [1, 31, 90, 65, 15, 1]  # Stirling


@pytest.mark.parametrize("num_heads", [1, 2, 5, 8])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_exact_equals_brute_force(num_heads, kind):
    cost = KINDS[kind](num_heads, num_heads)
    for num_groups in range(1, num_heads + 1):
        for sizes in limits(num_heads, num_groups):
            found = search.exact_partitions(num_heads, {num_groups: sizes}, cost)[num_groups]
            assert found.num_groups == num_groups
            assert sizes.hold(found)
            best = brute_force(num_heads, num_groups, cost, sizes)
            assert total(found, cost) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_all_counts_at_once_are_those_one_by_one(kind):
    cost = KINDS[kind](8, 3)
    counts = {4: Sizes(2, 2), 1: Sizes(8, 8), 3: Sizes(1, 6), 5: Sizes(1, 2), 8: Sizes(1, 1)}
    together = search.exact_partitions(8, counts, cost)
    assert list(together) == list(counts)
    for count, sizes in counts.items():
        assert search.exact_partitions(8, {count: sizes}, cost)[count] == together[count]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_optimal_is_exact_and_says_so(kind):
    heads = heads_of(normal(7, 4, 6), cost=KINDS[kind](7, 1))
    optimal, counts = METHODS["optimal"], {count: Sizes(1, 8 - count) for count in range(1, 8)}
    together = optimal.groups(heads, counts, seed="0")
    for count, sizes in counts.items():
        alone = optimal.group(heads, count, sizes=sizes, rng=random.Random(0))
        assert alone == together[count]
        assert total(alone, heads.cost) == pytest.approx(brute_force(7, count, heads.cost, sizes), abs=1e-12)
        assert optimal.gap(heads, alone) == 0.0


def test_ties_are_broken_the_same_way():
    sizes = Sizes(1, 4)
    found = search.exact_partitions(6, {3: sizes}, lambda group: 0.0)
    assert found == search.exact_partitions(6, {3: sizes}, lambda group: 0.0)
    drawn = {
        local_partition(14, 4, lambda group: 0.0, sizes=Sizes(1, 11), rng=random.Random(5)) for _ in range(3)
    }
    assert len(drawn) == 1


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(("num_heads", "num_groups", "seed"), [(8, 2, 0), (8, 3, 1), (8, 5, 0), (9, 3, 1)])
def test_local_search_lies_between_the_optimum_and_neighbour(kind, num_heads, num_groups, seed):
    cost = KINDS[kind](num_heads, seed)
    for sizes in limits(num_heads, num_groups):
        found = local_partition(num_heads, num_groups, cost, sizes=sizes, rng=random.Random(seed))
        assert found.num_groups == num_groups
        assert sizes.hold(found)
        optimum = brute_force(num_heads, num_groups, cost, sizes)
        neighbour = cut(list(range(num_heads)), equal_allocation(num_heads, num_groups))
        assert total(found, cost) >= optimum - 1e-12
        if kind == "plane":  # with structure the restarts find it
            assert total(found, cost) == pytest.approx(optimum)
        if kind != "random":
            assert total(found, cost) <= total(neighbour, cost) + 1e-12


@pytest.mark.parametrize(("num_heads", "num_groups", "seed"), [(12, 4, 0), (13, 5, 1), (14, 3, 0)])
def test_local_search_finds_the_optimum_of_structured_costs(num_heads, num_groups, seed):
    cost = KINDS["plane"](num_heads, seed)
    for sizes in limits(num_heads, num_groups):
        found = local_partition(num_heads, num_groups, cost, sizes=sizes, rng=random.Random(seed))
        exact = search.exact_partitions(num_heads, {num_groups: sizes}, cost)[num_groups]
        assert total(found, cost) == pytest.approx(total(exact, cost))


@pytest.mark.parametrize("exact_heads", [9, 10])
def test_best_is_exact_up_to_so_many_heads(exact_heads, monkeypatch):
    monkeypatch.setattr(search, "EXACT_HEADS", exact_heads)
    ways = {
        "exact_partitions": lambda heads, counts, cost: dict.fromkeys(counts, Partition.identity(heads)),
        "LocalSearch": lambda heads, cost: SimpleNamespace(
            partition=lambda groups, sizes, rng: Partition.single(heads)
        ),
    }
    for name, way in ways.items():
        monkeypatch.setattr(search, name, way)
    found = search.best_partition(10, 3, random_cost(10, 0), sizes=Sizes(1, 8), rng=random.Random(0))
    assert found.is_identity == (exact_heads == 10)


@pytest.mark.parametrize("sizes", [Sizes(2, 2), Sizes(1, 5), Sizes(1, 3)])
def test_no_move_or_swap_improves_what_local_search_finds(sizes):
    cost = KINDS["plane"](8, 5)
    found = local_partition(8, 4, cost, sizes=sizes, rng=random.Random(0))
    here = total(found, cost)
    for a in range(8):
        moves = [[*found.labels[:a], g, *found.labels[a + 1 :]] for g in range(4)]
        swaps = []
        for b in range(a):
            labels = list(found.labels)
            labels[a], labels[b] = labels[b], labels[a]
            swaps.append(labels)
        for labels in moves + swaps:
            other = Partition.of(labels)
            if other.num_groups == 4 and sizes.hold(other):
                assert total(other, cost) >= here - 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_the_cost_itself_has_the_last_word(seed):
    """Where costs have no structure that the stand-in could see, no promising move or swap is left that lowers them."""
    cost = random_cost(9, seed)
    sizes = Sizes(1, 7)
    search_ = LocalSearch(9, cost)
    found = search_.partition(3, sizes=sizes, rng=random.Random(seed))
    here = total(found, cost)
    for head in range(9):
        for group in range(3):
            other = Partition.of([*found.labels[:head], group, *found.labels[head + 1 :]])
            if other.num_groups == 3 and sizes.hold(other):
                assert total(other, cost) >= here - 1e-12


@pytest.mark.parametrize(("num_heads", "num_groups"), [(32, 8), (33, 7), (24, 20), (16, 16), (16, 1)])
def test_local_search_keeps_to_sizes_with_many_heads(num_heads, num_groups):
    cost = KINDS["plane"](num_heads, 0)
    for sizes in limits(num_heads, num_groups):
        found = local_partition(num_heads, num_groups, cost, sizes=sizes, rng=random.Random(0))
        assert found.num_groups == num_groups
        assert sizes.hold(found)


def test_the_stand_in_of_a_within_cluster_error_is_exact():
    shares = LocalSearch(20, KINDS["plane"](20, 0))._fitted.shares
    assert shares[1:] == pytest.approx([1 / size for size in range(1, 21)])


def test_the_stand_in_is_fitted_to_how_groups_of_a_size_cost():
    plane = KINDS["plane"](20, 0)
    shares = LocalSearch(20, lambda group: plane(group) * (1 if len(group) == 2 else 1.5))._fitted.shares
    assert shares[3] * 3 == pytest.approx(1.5)
    assert shares[2] * 2 == pytest.approx(1)


@pytest.mark.parametrize("dear", [False, True])
def test_a_number_of_groups_does_not_depend_on_the_others(dear):
    cost = KINDS["diameter"](14, 1)
    heads = heads_of(
        normal(14, 4, 6), cost=GroupCosts(lambda groups: [*map(cost, groups)], 8 if dear else 64)
    )
    optimal, counts = METHODS["optimal"], {count: Sizes(1, 15 - count) for count in (2, 5, 9, 13)}
    together = optimal.groups(heads, counts, seed="0")
    for count, sizes in counts.items():
        assert optimal.groups(heads, {count: sizes}, seed="0") == {count: together[count]}


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_unit_of_a_cost_does_not_matter(scale):
    cost = KINDS["plane"](14, 2)
    plain, scaled = (
        local_partition(14, 4, c, sizes=Sizes(1, 11), rng=random.Random(0))
        for c in (cost, lambda group: scale * cost(group))
    )
    assert total(scaled, cost) == pytest.approx(total(plain, cost))


@pytest.mark.parametrize(("heads", "groups", "sizes"), [(8, 4, [2] * 4), (8, 3, [3, 3, 2]), (5, 5, [1] * 5)])
def test_equal_allocation(heads, groups, sizes):
    assert equal_allocation(heads, groups) == tuple(sizes)
