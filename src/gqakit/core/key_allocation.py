"""How many query heads each KV head gets, evenly or by how long its keys are. Axes: G KV heads, H query heads."""

from __future__ import annotations

import math
from collections.abc import Sequence


def equal_allocation(num_heads: int, groups: int) -> tuple[int, ...]:
    """H query heads over G KV heads as evenly as can be; where G does not divide H, the first get one more."""
    share, more = divmod(num_heads, groups)
    return tuple(share + (group < more) for group in range(groups))


def contiguous_map(allocation: Sequence[int]) -> tuple[int, ...]:
    """The KV head of each query head: the first `allocation[0]` query heads read KV head 0, and so on."""
    return tuple(group for group, count in enumerate(allocation) for _ in range(count))


def min_max(values: Sequence[int | float]) -> list[float]:
    """`(n_g − min n) / (max n − min n)`: the values scaled to 0..1; equal ones, up to rounding, are all 1.

    Raises:
        ValueError: when a value is not finite.
    """
    check_finite(values)
    low, high = min(values), max(values)
    if high - low <= 1e-9 * high:  # norms in float32 that differ by rounding alone must not decide
        return [1.0] * len(values)
    return [(value - low) / (high - low) for value in values]


def allot(
    weights: Sequence[int | float], num_heads: int, least: int = 1, most: int | None = None
) -> tuple[int, ...]:
    """Query heads in proportion to weights, by largest remainder, each KV head between `least` and `most`.

    From `least` on, each head goes to the KV head that is furthest below its share `H w_g / Σ w`, the first of equals.
    Without limits that rounds the shares down and then goes by largest remainder; in any case no other allocation within
    the limits is nearer to the shares in squares. Weights that are all 0 count as equal.

    Args:
        weights: of each KV head, not negative.
        num_heads: query heads to give away.
        least, most: what one KV head may get; any number up to `num_heads` by default.

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


def check_finite(values: Sequence[int | float]) -> None:
    """Raise ValueError where a value is infinite or no number."""
    if not all(map(math.isfinite, values)):
        raise ValueError(f"norms {list(values)} are not finite, so no group sizes follow from them")
