"""Which sizes groups may have."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gqakit.core.grouping import Partition
from gqakit.core.key_allocation import equal_allocation
from gqakit.grouping_methods.base import Sizes, cut, in_range


def sizes_of_some_partition(num_heads: int, num_groups: int) -> list[tuple[int, ...]]:
    """Every list of group sizes, ascending."""
    return [
        sizes
        for sizes in itertools.combinations_with_replacement(range(1, num_heads + 1), num_groups)
        if sum(sizes) == num_heads
    ]


@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.none() | st.integers(1, 9))
def test_sizes_exist_where_some_partition_has_them(num_heads, num_groups, equal, most):
    possible = [
        sizes
        for sizes in sizes_of_some_partition(num_heads, num_groups)
        if (not equal or len(set(sizes)) == 1) and (most is None or max(sizes) <= most)
    ]
    found = Sizes.of(num_heads, num_groups, equal=equal, most=most)
    if not possible:
        assert found is None
        return
    assert found is not None
    every = sizes_of_some_partition(num_heads, num_groups)
    held = [sizes for sizes in every if found.hold(cut(list(range(num_heads)), list(sizes)))]
    assert held == possible
    blocks = equal_allocation(num_heads, num_groups)  # what every search starts from
    assert found.hold(cut(list(range(num_heads)), blocks))


@given(st.integers(1, 40), st.data())
def test_balanced_is_what_blocks_have(num_heads, data):
    num_groups = data.draw(st.integers(1, num_heads))
    balanced = Sizes.balanced(num_heads, num_groups)
    blocks = equal_allocation(num_heads, num_groups)
    assert (balanced.least, balanced.most) == (min(blocks), max(blocks))
    assert sum(blocks) == num_heads
    assert list(blocks) == sorted(blocks, reverse=True)


def test_cut_keeps_the_order():
    assert cut([3, 1, 0, 2], [1, 3]) == Partition.from_groups([[3], [0, 1, 2]])


def test_in_range_says_what_was_seen_and_what_is_allowed():
    in_range("p", 0.5, 0, 1)
    in_range("n", 10**9, 1)
    with pytest.raises(ValueError, match=r"p = 1.5 must be at least 0 and at most 1"):
        in_range("p", 1.5, 0, 1)
    with pytest.raises(ValueError, match=r"p = nan must be"):
        in_range("p", float("nan"), 0, 1)
    with pytest.raises(ValueError, match=r"n = 0 must be at least 1$"):
        in_range("n", 0, 1)
