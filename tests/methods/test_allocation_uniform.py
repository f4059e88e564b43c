"""The uniform allocation: the most heads in every layer that stay within the share."""

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gqakit.errors import BudgetError
from gqakit.planning.allocation import ALLOCATIONS
from gqakit.planning.allocation.base import FrontPoint, LayerEntry, pick

UNIFORM = ALLOCATIONS["uniform"]


def entries(num_heads: list[int], equal: bool = False) -> list[LayerEntry]:
    """An entry for each layer; with `equal` only numbers that divide its heads."""
    return [
        LayerEntry(
            f"layer {index}", heads, 2, tuple(n for n in range(1, heads + 1) if not equal or heads % n == 0)
        )
        for index, heads in enumerate(num_heads)
    ]


def allocate(num_heads: list[int], ratio: float, *, equal: bool = False, tied: bool = False) -> list[int]:
    """The numbers picked within a budget."""
    layers = entries(num_heads, equal)
    return list(pick(UNIFORM.front(layers, tied=tied, rng=random.Random(0)), layers, ratio).counts)


@given(st.lists(st.integers(1, 16), min_size=1, max_size=6), st.floats(0.01, 1), st.booleans())
def test_every_layer_keeps_the_most_within_one_share(num_heads, ratio, equal):
    """Against every share there is, in exact fractions: the largest that fits, or an error where none does."""
    possible = [[n for n in range(1, heads + 1) if not equal or heads % n == 0] for heads in num_heads]
    shares = {Fraction(n, heads) for heads, counts in zip(num_heads, possible, strict=True) for n in counts}
    fitting: list[list[int]] = []
    for share in shares:
        within = [
            [n for n in counts if Fraction(n, heads) <= share]
            for heads, counts in zip(num_heads, possible, strict=True)
        ]
        if all(within) and sum(map(max, within)) <= sum(num_heads) * ratio + 1e-6:
            fitting.append([max(counts) for counts in within])
    if fitting:
        assert allocate(num_heads, ratio, equal=equal) == max(fitting, key=sum)
    else:
        with pytest.raises(BudgetError):
            allocate(num_heads, ratio, equal=equal)


def test_examples():
    assert allocate([8, 8], 0.5, equal=True) == [4, 4]
    assert allocate([8, 8], 0.7, equal=True) == [4, 4]
    assert allocate([8, 8], 0.7) == [5, 5]
    assert allocate([3], 2 / 3) == [2]
    assert allocate([3], 2 / 3, equal=True) == [1]
    assert allocate([4, 12], 0.5) == [2, 6]
    assert allocate([8, 8], 0.7, equal=True, tied=True) == [4, 4]


def test_losses_are_added_up_where_they_are_known():
    known = [LayerEntry("a", 2, 1, (1, 2), (3.0, 0.0)), LayerEntry("b", 2, 2, (1, 2), (4.0, 0.5))]
    front = UNIFORM.front(known, tied=False, rng=random.Random(0))
    assert front == [FrontPoint((1, 1), 3, 7.0), FrontPoint((2, 2), 6, 0.5)]


def test_too_small_a_budget_names_the_nearest_that_is_met():
    with pytest.raises(BudgetError, match=r"the smallest within the constraints is 0\.1250 \(4 of 32"):
        allocate([8, 8], 0.12)
    assert allocate([8, 4], 0.25, equal=True) == [2, 1]


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
def test_says_what_it_is_and_needs(name):
    assert ALLOCATIONS[name].summary
    assert ALLOCATIONS[name].needs in {"nothing", "weights", "moments", "model"}
