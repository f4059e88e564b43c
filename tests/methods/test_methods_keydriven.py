"""Key-driven groups: sizes follow the norms of the keys."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods_layers import HEAD_DIM, WIDTH, heads_of, normal, random_heads

from gqakit.core.key_allocation import allot, equal_allocation, min_max
from gqakit.grouping_methods import METHODS
from gqakit.grouping_methods.base import HeadFeatures, Sizes
from gqakit.grouping_methods.key_driven import block_lengths

KEYDRIVEN = METHODS["keydriven"]
importances = st.lists(st.integers(0, 1000), min_size=1, max_size=8)


def sizes_of(heads: HeadFeatures, num_groups: int, sizes: Sizes | None = None) -> tuple[int, ...]:
    sizes = sizes or Sizes(1, heads.num_heads - num_groups + 1)
    found = KEYDRIVEN.group(heads, num_groups, sizes=sizes, rng=random.Random(0))
    assert list(found.labels) == sorted(found.labels)  # contiguous
    return found.sizes


def with_lengths(lengths: list[float]) -> torch.Tensor:
    return normal(1, HEAD_DIM, WIDTH) * torch.tensor(lengths, dtype=torch.float64)[:, None, None]


def test_more_heads_where_keys_are_long():
    heads = heads_of(with_lengths([1, 1, 1, 2, 2, 2, 3, 3, 3, 5, 5, 5]))
    # Scaled to 0, 1/4, 1/2, 1, that is 0, 1.71, 3.43 and 6.86 heads of 12, of which the first is owed one.
    assert sizes_of(heads, 4) == (1, 1, 3, 7)
    assert sizes_of(heads, 4, Sizes(1, 5)) == (1, 2, 4, 5)
    assert sizes_of(heads, 4, Sizes(3, 3)) == (3, 3, 3, 3)


def test_importance_is_the_length_of_the_mean_key():
    x = normal(50, WIDTH + 1, seed=3)
    key = normal(6, HEAD_DIM, WIDTH)
    heads = heads_of(key, normal(6, HEAD_DIM, WIDTH, seed=9), moment=x.T @ x / len(x))
    keys = torch.einsum("hdw,tw->htd", key, x[:, :WIDTH])
    expected = [float(keys[2 * g : 2 * g + 2].mean(0).square().sum(1).mean().sqrt()) for g in range(3)]
    assert block_lengths(heads.sides[0], 3) == pytest.approx(expected)


def test_keys_decide_unless_only_values_are_given():
    long_last, long_first = with_lengths([1, 1, 1, 1, 9, 9]), with_lengths([9, 9, 1, 1, 1, 1])
    assert sizes_of(heads_of(long_last, long_first), 3) == (1, 1, 4)
    assert sizes_of(heads_of(long_last, long_first, sides=("key",)), 3) == (1, 1, 4)
    assert sizes_of(heads_of(long_last, long_first, sides=("value",)), 3) == (4, 1, 1)


@pytest.mark.parametrize(("num_heads", "num_groups"), [(8, 4), (7, 3), (5, 5), (6, 1)])
@pytest.mark.parametrize("length", [0.0, 1.0])
def test_equal_norms_give_equal_sizes(num_heads, num_groups, length):
    heads = heads_of(with_lengths([length] * num_heads))
    assert sizes_of(heads, num_groups) == equal_allocation(num_heads, num_groups)


def test_nothing_is_left_to_chance():
    heads = random_heads(12)
    assert len({KEYDRIVEN.group(heads, 5, sizes=Sizes(1, 8), rng=random.Random(s)) for s in range(5)}) == 1


@given(importances, st.data())
def test_allotment(importance, data):
    groups = len(importance)
    heads = data.draw(st.integers(groups, 40))
    least = data.draw(st.integers(1, heads // groups))
    most = data.draw(st.integers(-(-heads // groups), heads))
    given_heads = allot(min_max(importance), heads, least, most)
    assert sum(given_heads) == heads
    assert all(least <= size <= most for size in given_heads)
    for a in range(groups):
        for b in range(groups):
            assert importance[a] <= importance[b] or given_heads[a] >= given_heads[b]
    if least == 1 and most == heads and min(importance) < 0.999 * max(importance):
        scaled = [(v - min(importance)) / (max(importance) - min(importance)) for v in importance]
        shares = [heads * v / sum(scaled) for v in scaled]
        # No more than the share rounded up, but for the one head that each is owed.
        assert all(size <= max(1, share + 1) for size, share in zip(given_heads, shares, strict=True))


def test_allotment_by_largest_remainder():
    assert allot(min_max([0, 1, 1.2]), 10, 0, 10) == (0, 5, 5)  # shares 0, 4.55, 5.45
    assert allot(min_max([0, 1, 2]), 12, 1, 10) == (1, 4, 7)  # shares 0, 4, 8; a tie goes to the first
    assert allot(min_max([3, 3, 3]), 8, 1, 6) == (3, 3, 2)
    assert allot(min_max([5]), 4, 4, 4) == (4,)
    assert allot(min_max([1, 1 + 1e-12]), 8, 1, 7) == (4, 4)  # equal up to rounding


def test_norms_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        min_max([1.0, float("nan")])
