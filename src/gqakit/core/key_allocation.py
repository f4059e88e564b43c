"""How many query heads each KV head gets, from how long its keys are (arXiv 2408.08454). Pure Python.

`allot` is what gqakit does. `published_by_norm` and `published_by_share` are what the paper's published code does, kept so
that the difference can be measured. Axes: G KV heads, H query heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def equal_allocation(num_heads: int, groups: int) -> tuple[int, ...]:
    """H query heads over G KV heads as evenly as can be; where G does not divide H, the first get one more."""
    share, more = divmod(num_heads, groups)
    return tuple(share + (group < more) for group in range(groups))


def contiguous_map(allocation: Sequence[int]) -> tuple[int, ...]:
    """The KV head of each query head: the first `allocation[0]` query heads read KV head 0, and so on."""
    return tuple(group for group, count in enumerate(allocation) for _ in range(count))


def min_max(values: Sequence[int | float]) -> list[float]:
    """The values scaled to 0..1 by their least and greatest; equal ones, up to rounding, are all 1.

    Raises:
        ValueError: when a value is not finite.
    """
    check_finite(values)
    low, high = min(values), max(values)
    if high - low <= 1e-9 * high:
        return [1.0] * len(values)
    return [(value - low) / (high - low) for value in values]


def allot(
    weights: Sequence[int | float], num_heads: int, least: int = 1, most: int | None = None
) -> tuple[int, ...]:
    """Query heads in proportion to weights, by largest remainder, each KV head between `least` and `most`.

    From `least` on, each head goes to the KV head that is furthest below its share `H w_g / Σ w`, the first of equals.
    Without limits that rounds the shares down and then goes by largest remainder; in any case no other allocation within
    the limits is nearer to the shares in squares. Weights that are all 0 count as equal.

    Raises:
        ValueError: when a weight is negative or not finite, or the limits leave no allocation.
    """
    check_finite(weights)
    groups = len(weights)
    most = num_heads if most is None else most
    if min(weights) < 0 or not least * groups <= num_heads <= most * groups:
        raise ValueError(
            f"{num_heads} heads cannot go to {groups} groups of {least} to {most} by weights {weights}"
        )
    total = math.fsum(weights)
    shares = [num_heads * (weight / total if total > 0 else 1 / groups) for weight in weights]
    given = [least] * groups
    for _ in range(num_heads - least * groups):
        open_groups = [group for group in range(groups) if given[group] < most]
        furthest = max(open_groups, key=lambda group: shares[group] - given[group])
        given[furthest] += 1
    return tuple(given)


def published_by_norm(norms: Sequence[int | float], num_heads: int) -> tuple[int, ...]:
    """KDGQA as published: min-max scaled norms, shares rounded one by one, mended at the largest or the smallest.

    The KV head with the shortest keys gets none, unless mending gives it some.

    Raises:
        ValueError: when all norms are equal, where the published formula is 0/0.
    """
    check_finite(norms)
    low, high = min(norms), max(norms)
    if high == low:
        raise ValueError(f"all {len(norms)} norms are {high:.6g}, where the published min-max scaling is 0/0")
    scaled = [(norm - low) / (high - low) for norm in norms]
    total = sum(scaled)
    given = [round(num_heads * value / total) for value in scaled]
    while sum(given) > num_heads:
        given[given.index(max(given))] -= 1
    while sum(given) < num_heads:
        given[given.index(min(given))] += 1
    return tuple(given)


def published_by_share(
    weights: Sequence[int | float], num_heads: int, draw: Callable[[int], int]
) -> tuple[int, ...]:
    """DGQA as published: shares rounded one by one, mended at KV heads drawn by chance. Any may get none.

    Args:
        draw: a random number below its argument.

    Raises:
        ValueError: when all weights are 0, where the published formula is 0/0.
    """
    check_finite(weights)
    total = sum(weights)
    if total == 0:
        raise ValueError(f"all {len(weights)} weights are 0, where the published shares are 0/0")
    given = [round(num_heads * weight / total) for weight in weights]
    while sum(given) > num_heads:
        group = draw(len(given))
        given[group] -= given[group] > 0
    while sum(given) < num_heads:
        given[draw(len(given))] += 1
    return tuple(given)


def check_finite(values: Sequence[int | float]) -> None:
    """Raise ValueError where a value is infinite or no number."""
    if not all(map(math.isfinite, values)):
        raise ValueError(f"norms {list(values)} are not finite, so no group sizes follow from them")
