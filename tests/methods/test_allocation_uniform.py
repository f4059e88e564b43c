"""The uniform allocation: the most heads in every layer that stay within the share."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gqakit.errors import BudgetError
from gqakit.planning.allocation import ALLOCATIONS
from gqakit.planning.allocation.base import Point, Slot, pick

UNIFORM = ALLOCATIONS["uniform"]


def slots(num_heads: list[int], equal: bool = False) -> list[Slot]:
    """A slot for each layer; with `equal` only numbers that divide its heads."""
    return [
        Slot(f"layer {index}", heads, 2, tuple(n for n in range(1, heads + 1) if not equal or heads % n == 0))
        for index, heads in enumerate(num_heads)
    ]


def allocate(num_heads: list[int], ratio: float, *, equal: bool = False, tied: bool = False) -> list[int]:
    """The numbers picked within a budget."""
    layers = slots(num_heads, equal)
    return list(pick(UNIFORM.front(layers, tied=tied, rng=random.Random(0)), layers, ratio).counts)


@given(st.lists(st.integers(1, 16), min_size=1, max_size=6), st.floats(0.01, 1), st.booleans())
def test_every_layer_keeps_the_most_within_one_share(num_heads, ratio, equal):
    try:
        kept = allocate(num_heads, ratio, equal=equal)
    except BudgetError:
        assert sum(1 for _ in num_heads) > sum(num_heads) * ratio or min(num_heads) < max(num_heads)
        return
    assert sum(kept) <= sum(num_heads) * ratio + 1e-6
    share = max(keep / heads for keep, heads in zip(kept, num_heads, strict=True))
    for heads, keep in zip(num_heads, kept, strict=True):
        allowed = [
            n for n in range(1, heads + 1) if n <= heads * share + 1e-6 and (not equal or heads % n == 0)
        ]
        assert keep == max(allowed)


def test_examples():
    assert allocate([8, 8], 0.5, equal=True) == [4, 4]
    assert allocate([8, 8], 0.7, equal=True) == [4, 4]
    assert allocate([8, 8], 0.7) == [5, 5]
    assert allocate([3], 2 / 3) == [2]
    assert allocate([3], 2 / 3, equal=True) == [1]
    assert allocate([4, 12], 0.5) == [2, 6]
    assert allocate([8, 8], 0.7, equal=True, tied=True) == [4, 4]


def test_losses_are_added_up_where_they_are_known():
    known = [Slot("a", 2, 1, (1, 2), (3.0, 0.0)), Slot("b", 2, 2, (1, 2), (4.0, 0.5))]
    front = UNIFORM.front(known, tied=False, rng=random.Random(0))
    assert front == [Point((1, 1), 3, 7.0), Point((2, 2), 6, 0.5)]


def test_too_small_a_budget_names_the_nearest_that_is_met():
    with pytest.raises(BudgetError, match=r"the smallest within the constraints is 0\.1250 \(4 of 32"):
        allocate([8, 8], 0.12)
    assert allocate([8, 4], 0.25, equal=True) == [2, 1]


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
def test_registered_under_its_own_name(name):
    assert ALLOCATIONS[name].name == name
    assert ALLOCATIONS[name].summary
    assert ALLOCATIONS[name].needs in {"nothing", "weights", "moments", "model"}
