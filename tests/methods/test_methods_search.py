"""The search for partitions against brute force, on costs without any structure."""

import random
from collections.abc import Iterator

import pytest

from gqakit.core.grouping import Partition
from gqakit.methods import METHODS, LayerHeads, search
from gqakit.methods.base import Cost, cut, equal_blocks

Groups = tuple[tuple[int, ...], ...]


def random_cost(seed: int) -> Cost:
    """A cost for every group, the same whenever it is asked for; a head alone costs nothing."""

    def cost(group: tuple[int, ...]) -> float:
        assert list(group) == sorted(set(group)), "groups are scored with ascending members"
        return random.Random(f"{seed}/{group}").random() * len(group) if len(group) > 1 else 0.0

    return cost


def close_cost(seed: int) -> Cost:
    """Within-group variance of points in the plane: the kind of cost that heads have."""
    points = [
        complex(random.Random(f"{seed}/{h}").gauss(0, 1), random.Random(f"{seed}-{h}").gauss(0, 1))
        for h in range(12)
    ]

    def cost(group: tuple[int, ...]) -> float:
        center = sum(points[h] for h in group) / len(group)
        return sum(abs(points[h] - center) ** 2 for h in group)

    return cost


def all_partitions(num_heads: int, num_groups: int) -> Iterator[Groups]:
    """Every partition of the heads into that many groups."""

    def extend(labels: list[int]) -> Iterator[list[int]]:
        if len(labels) == num_heads:
            if max(labels) + 1 == num_groups:
                yield labels
            return
        for label in range(min(max(labels, default=-1) + 2, num_groups)):
            yield from extend([*labels, label])

    for labels in extend([]):
        yield tuple(tuple(h for h in range(num_heads) if labels[h] == g) for g in range(num_groups))


def brute_force(num_heads: int, num_groups: int, cost: Cost, equal: bool) -> float:
    return min(
        sum(map(cost, groups))
        for groups in all_partitions(num_heads, num_groups)
        if not equal or len({len(g) for g in groups}) == 1
    )


def total(partition: Partition, cost: Cost) -> float:
    return sum(map(cost, partition.groups))


def test_the_brute_force_looks_at_everything():
    assert [sum(1 for _ in all_partitions(6, k)) for k in range(1, 7)] == [1, 31, 90, 65, 15, 1]  # Stirling


@pytest.mark.parametrize("num_heads", range(1, 8))
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("kind", [random_cost, close_cost])
def test_optimal_equals_brute_force(num_heads, equal, kind):
    for num_groups in range(1, num_heads + 1):
        if equal and num_heads % num_groups:
            continue
        cost = kind(num_heads)
        heads = LayerHeads(num_heads, cost, weights=None)  # pyright: ignore[reportArgumentType]
        found = METHODS["optimal"].group(heads, num_groups, equal=equal, rng=random.Random(0))
        assert found.num_groups == num_groups
        assert not equal or found.is_equal
        assert total(found, cost) == pytest.approx(brute_force(num_heads, num_groups, cost, equal), abs=1e-12)


@pytest.mark.parametrize(("num_heads", "num_groups"), [(9, 3), (10, 5), (8, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_exact_partition_with_equal_groups(num_heads, num_groups, seed):
    cost = random_cost(seed)
    found = search.exact_partition(num_heads, num_groups, cost, equal=True)
    assert found.is_equal
    assert total(found, cost) == pytest.approx(brute_force(num_heads, num_groups, cost, True), abs=1e-12)


def test_ties_are_broken_the_same_way():
    found = search.exact_partition(6, 3, lambda group: 0.0, equal=False)
    assert found == search.exact_partition(6, 3, lambda group: 0.0, equal=False)
    assert search.exact_partition(4, 2, lambda group: 0.0, equal=True).groups == ((0, 1), (2, 3))


@pytest.mark.parametrize("kind", [random_cost, close_cost])
@pytest.mark.parametrize(("num_heads", "num_groups"), [(9, 3), (9, 5), (10, 2)])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_local_search_lies_between_the_optimum_and_neighbour(kind, num_heads, num_groups, equal, seed):
    if equal and num_heads % num_groups:
        num_groups = 3 if num_heads == 9 else 2
    assert num_heads > search.EXACT_HEADS
    cost = kind(seed)
    found = search.best_partition(num_heads, num_groups, cost, equal=equal, rng=random.Random(seed))
    assert found.num_groups == num_groups
    assert not equal or found.is_equal
    optimum = brute_force(num_heads, num_groups, cost, equal)
    neighbour = cut(list(range(num_heads)), equal_blocks(num_heads, num_groups))
    assert optimum - 1e-12 <= total(found, cost) <= total(neighbour, cost) + 1e-12
    if kind is close_cost:  # with structure the restarts find it
        assert total(found, cost) == pytest.approx(optimum)


@pytest.mark.parametrize("equal", [False, True])
def test_no_move_or_swap_improves_the_result(equal, monkeypatch):
    monkeypatch.setattr(search, "EXACT_HEADS", 0)
    cost = random_cost(5)
    found = search.best_partition(8, 4, cost, equal=equal, rng=random.Random(0))
    here = total(found, cost)
    for a in range(8):
        moves = [[*found.labels[:a], g, *found.labels[a + 1 :]] for g in range(4)] if not equal else []
        swaps = []
        for b in range(a):
            labels = list(found.labels)
            labels[a], labels[b] = labels[b], labels[a]
            swaps.append(labels)
        for labels in moves + swaps:
            other = Partition.of(labels)
            if other.num_groups == 4:
                assert total(other, cost) >= here - 1e-12


def test_descent_never_goes_up():
    cost = random_cost(2)
    for seed in range(5):
        order = list(range(9))
        random.Random(seed).shuffle(order)
        start = tuple(sorted(cut(order, [4, 3, 2]).groups))
        end = search.descend(start, cost, equal=True)
        assert sum(map(cost, end)) <= sum(map(cost, start))
        assert sorted(map(len, end)) == [2, 3, 4]


def test_agglomeration_joins_the_closest():
    points = [0.0, 10.0, 0.1, 20.0, 10.2]

    def cost(group: tuple[int, ...]) -> float:
        center = sum(points[h] for h in group) / len(group)
        return sum((points[h] - center) ** 2 for h in group)

    assert search.agglomerate(5, 3, cost) == ((0, 2), (1, 4), (3,))
    assert search.agglomerate(5, 5, cost) == ((0,), (1,), (2,), (3,), (4,))


@pytest.mark.parametrize(("heads", "groups", "sizes"), [(8, 4, [2] * 4), (8, 3, [3, 3, 2]), (5, 5, [1] * 5)])
def test_equal_blocks(heads, groups, sizes):
    assert equal_blocks(heads, groups) == sizes
