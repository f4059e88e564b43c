"""Costs of groups with and without structure, and all partitions one by one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from methods_layers import normal

from gqakit.core.grouping import Partition
from gqakit.core.within_cluster import WithinClusterError
from gqakit.grouping_methods.base import Cost, Sizes

Groups = tuple[tuple[int, ...], ...]


def random_cost(num_heads: int, seed: int) -> Cost:
    """A cost for every group, the same whenever it is asked for; a head alone costs nothing."""

    def cost(group: tuple[int, ...]) -> float:
        assert list(group) == sorted(set(group)), "groups are scored with ascending members"
        assert max(group) < num_heads
        return random.Random(f"{seed}/{group}").random() * len(group) if len(group) > 1 else 0.0

    return cost


def plane_cost(num_heads: int, seed: int) -> Cost:
    """Within-group variance of points in the plane: the kind of cost that heads have."""
    points = normal(num_heads, 2, seed=seed)
    return WithinClusterError(points @ points.T)


def diameter_cost(num_heads: int, seed: int) -> Cost:
    """The greatest distance within a group of points: structured, but no sum over pairs."""
    points = normal(num_heads, 2, seed=seed)
    distance = (points[:, None] - points[None]).square().sum(-1).sqrt().tolist()
    return lambda group: max(distance[a][b] for a in group for b in group)


KINDS: dict[str, Callable[[int, int], Cost]] = {
    "random": random_cost,
    "plane": plane_cost,
    "diameter": diameter_cost,
    "nothing": lambda num_heads, seed: lambda group: 0.0,
}


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


def brute_force(num_heads: int, num_groups: int, cost: Cost, sizes: Sizes) -> float:
    """The least total of all partitions with these sizes."""
    return min(
        sum(map(cost, groups))
        for groups in all_partitions(num_heads, num_groups)
        if all(sizes.least <= len(group) <= sizes.most for group in groups)
    )


def total(partition: Partition, cost: Cost) -> float:
    """The cost of a partition."""
    return sum(map(cost, partition.groups))
