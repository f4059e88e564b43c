"""How many query heads each KV head gets: by hand, by brute force, and as published."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gqakit.core.key_allocation import (
    allot,
    contiguous_map,
    equal_allocation,
    min_max,
)
from gqakit.key_driven.published_allocation import published_by_norm, published_by_share


def test_maps_and_equal_allocations():
    assert contiguous_map((1, 3, 2)) == (0, 1, 1, 1, 2, 2)
    assert equal_allocation(6, 3) == (2, 2, 2)
    assert equal_allocation(8, 3) == (3, 3, 2)


def test_scaling():
    assert min_max([2, 4, 3]) == [0, 1, 0.5]
    assert min_max([5, 5, 5]) == [1, 1, 1]
    assert min_max([0, 0]) == [1, 1]
    assert min_max([1, 1 + 1e-12]) == [1, 1]  # equal up to rounding
    with pytest.raises(ValueError, match="not finite"):
        min_max([1, float("nan")])


@pytest.mark.parametrize(
    ("weights", "heads", "expected"),
    [
        ([1, 1, 1], 6, (2, 2, 2)),
        ([0, 0.5, 1], 6, (1, 2, 3)),  # shares 0, 2, 4, and the first is owed one: 4 goes to 3 before 2 to 1
        ([0, 0, 1], 6, (1, 1, 4)),
        ([0, 0, 0], 6, (2, 2, 2)),
        ([1, 1, 1], 8, (3, 3, 2)),  # a tie goes to the first
        ([3, 1], 6, (5, 1)),  # shares 4.5, 1.5: the tie of their remainders goes to the first
        ([10, 1, 1, 1], 4, (1, 1, 1, 1)),
    ],
)
def test_allotments_by_hand(weights, heads, expected):
    assert allot(weights, heads) == expected


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(0, 5), st.integers(0, 1))
def test_no_allotment_is_nearer_to_the_shares(weights, more, least):
    heads, total = len(weights) + more, sum(weights)
    found = allot(weights, heads, least)
    assert sum(found) == heads
    assert min(found) >= least
    shares = [heads * w / total if total else heads / len(weights) for w in weights]

    def distance(allocation):
        return sum((n - share) ** 2 for n, share in zip(allocation, shares, strict=True))

    others = [a for a in product(range(least, heads + 1), repeat=len(weights)) if sum(a) == heads]
    assert distance(found) <= min(map(distance, others)) + 1e-9


def test_what_cannot_be_allotted():
    for weights, heads in (([1, 1, 1], 2), ([1, -1], 4), ([1, float("inf")], 4)):
        with pytest.raises(ValueError, match=r"cannot go|not finite"):
            allot(weights, heads)


def test_the_published_norm_rule_starves_the_shortest_keys():
    assert published_by_norm([1, 2, 3], 6) == (0, 2, 4)
    assert published_by_norm([5, 5, 9], 6) == (0, 0, 6)
    assert published_by_norm([0, 3, 3], 6) == (0, 3, 3)
    # Shares 0, 2.5, 2.5 are rounded to even, 0, 2, 2: the smallest is mended first.
    assert published_by_norm([0, 3, 3], 5) == (1, 2, 2)
    # Shares 0, 1.5, 1.5, 3 are rounded to 0, 2, 2, 3 of 6: the largest is mended first.
    assert published_by_norm([0, 1, 1, 2], 6) == (0, 2, 2, 2)
    with pytest.raises(ValueError, match=r"all 2 norms are 4, .* 0/0"):
        published_by_norm([4, 4], 6)


def test_the_published_share_rule_leaves_ties_to_chance():
    drawn = iter([0, 2])
    # Shares 2.67 each of 8 are rounded to 3, 3, 3, one too many.
    assert published_by_share([1, 1, 1], 8, lambda below: next(drawn)) == (2, 3, 3)
    assert published_by_share([1, 1, 1], 8, lambda below: next(drawn)) == (3, 3, 2)
    # What has none cannot lose one: the next draw decides.
    drawn = iter([2, 0])
    assert published_by_share([1, 1, 0], 3, lambda below: next(drawn)) == (1, 2, 0)
    assert published_by_share([0, 1, 3], 4, lambda below: 0) == (0, 1, 3)
    with pytest.raises(ValueError, match=r"all 2 weights are 0, .* 0/0"):
        published_by_share([0, 0], 4, lambda below: 0)
