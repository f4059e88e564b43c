"""Partitions of least total cost, for any additive cost of a group.

Exact by dynamic programming over subsets where few heads make that cheap; otherwise agglomeration and
local search (move a head, swap two) with restarts. Costs are cached, so a group is scored once.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from gqakit.core.grouping import Partition
from gqakit.methods.base import Cost, cut, equal_blocks

Groups = tuple[tuple[int, ...], ...]

EXACT_HEADS = 8
RESTARTS = 8


def best_partition(
    num_heads: int, num_groups: int, cost: Cost, *, equal: bool, rng: random.Random
) -> Partition:
    """The cheapest partition into `num_groups` groups: optimal up to `EXACT_HEADS` heads, else a local optimum."""
    if num_heads <= EXACT_HEADS:
        return exact_partition(num_heads, num_groups, cost, equal=equal)
    starts: list[Groups] = [_sorted(cut(list(range(num_heads)), equal_blocks(num_heads, num_groups)).groups)]
    if not equal:
        starts.append(agglomerate(num_heads, num_groups, cost))
    for _ in range(RESTARTS):
        order = list(range(num_heads))
        rng.shuffle(order)
        starts.append(_sorted(cut(order, equal_blocks(num_heads, num_groups)).groups))
    found = [descend(start, cost, equal=equal) for start in starts]
    return Partition.from_groups(min(found, key=lambda groups: (_total(groups, cost), groups)))


def exact_partition(num_heads: int, num_groups: int, cost: Cost, *, equal: bool) -> Partition:
    """The optimum, by dynamic programming over the set of heads already placed.

    Each step takes the lowest head not yet placed together with any others, so every partition is looked
    at once: `O(3^num_heads)` steps and at most `2^num_heads` scores.
    """
    everyone = (1 << num_heads) - 1
    size = num_heads // num_groups
    layers: list[dict[int, tuple[float, Groups]]] = [{0: (0.0, ())}]
    for placed_groups in range(1, num_groups + 1):
        left = num_groups - placed_groups
        states: dict[int, tuple[float, Groups]] = {}
        for mask, (spent, groups) in layers[-1].items():
            rest = [head for head in range(num_heads) if not mask >> head & 1]
            most = len(rest) - left
            counts = [size] if equal else ([most] if left == 0 else range(1, most + 1))
            for count in counts:
                for others in itertools.combinations(rest[1:], count - 1):
                    group = (rest[0], *others)
                    after = mask | sum(1 << head for head in group)
                    candidate = (spent + cost(group), (*groups, group))
                    if after not in states or candidate < states[after]:
                        states[after] = candidate
        layers.append(states)
    return Partition.from_groups(layers[-1][everyone][1])


def agglomerate(num_heads: int, num_groups: int, cost: Cost) -> Groups:
    """Merge, again and again, the two groups whose union adds least."""
    groups: list[tuple[int, ...]] = [(head,) for head in range(num_heads)]
    while len(groups) > num_groups:
        pairs = itertools.combinations(groups, 2)
        a, b = min(pairs, key=lambda ab: (cost(_union(*ab)) - cost(ab[0]) - cost(ab[1]), ab))
        groups = [group for group in groups if group not in (a, b)] + [_union(a, b)]
    return _sorted(groups)


def descend(start: Groups, cost: Cost, *, equal: bool) -> Groups:
    """Take the best move or swap until none lowers the total; sizes stay as they are when `equal`."""
    groups = start
    while True:
        here = _total(groups, cost)
        best = min(
            ((_change(groups, change, cost), change) for change in _changes(groups, equal)),
            default=(0.0, ()),
        )
        if best[0] >= -1e-12 * max(abs(here), 1e-30):
            return groups
        untouched = [g for i, g in enumerate(groups) if i not in {index for index, _ in best[1]}]
        groups = _sorted([*untouched, *(group for _, group in best[1])])


Change = tuple[tuple[int, tuple[int, ...]], ...]  # (index of a group, what it becomes) twice


def _changes(groups: Groups, equal: bool) -> Iterator[Change]:
    for (i, a), (j, b) in itertools.permutations(enumerate(groups), 2):
        if not equal and len(a) > 1:
            for head in a:
                yield (i, _without(a, head)), (j, _union(b, (head,)))
        if i < j:
            for x, y in itertools.product(a, b):
                yield (i, _union(_without(a, x), (y,))), (j, _union(_without(b, y), (x,)))


def _change(groups: Groups, change: Change, cost: Cost) -> float:
    return sum(cost(group) - cost(groups[index]) for index, group in change)


def _without(group: tuple[int, ...], head: int) -> tuple[int, ...]:
    return tuple(other for other in group if other != head)


def _union(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(a + b))


def _sorted(groups: list[tuple[int, ...]] | Groups) -> Groups:
    return tuple(sorted(groups))


def _total(groups: Groups, cost: Cost) -> float:
    return sum(cost(group) for group in groups)
