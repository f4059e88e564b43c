"""The allocations of KDGQA and DGQA as the paper's published code has them (arXiv 2408.08454), to measure the difference.

What gqakit does instead is `gqakit.core.key_allocation.allot`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gqakit.core.key_allocation import check_finite


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
    given = _rounded([(norm - low) / (high - low) for norm in norms], num_heads)
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
        weights: of each KV head, not negative.
        num_heads: query heads to give away.
        draw: a random number below its argument.

    Raises:
        ValueError: when all weights are 0, where the published formula is 0/0.
    """
    check_finite(weights)
    if sum(weights) == 0:
        raise ValueError(f"all {len(weights)} weights are 0, where the published shares are 0/0")
    given = _rounded(weights, num_heads)
    while sum(given) > num_heads:
        group = draw(len(given))
        given[group] -= given[group] > 0
    while sum(given) < num_heads:
        given[draw(len(given))] += 1
    return tuple(given)


def _rounded(weights: Sequence[int | float], num_heads: int) -> list[int]:
    total = sum(weights)
    return [round(num_heads * weight / total) for weight in weights]
