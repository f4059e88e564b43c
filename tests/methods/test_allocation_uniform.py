"""The uniform allocation: within the budget, as much as it allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gqakit.allocation import ALLOCATIONS
from gqakit.errors import BudgetError

UNIFORM = ALLOCATIONS["uniform"]


@given(st.lists(st.integers(1, 16), min_size=1, max_size=6), st.floats(0.01, 1), st.booleans())
def test_the_most_heads_within_the_budget(num_heads, ratio, equal):
    try:
        kept = UNIFORM.allocate(num_heads, ratio, equal=equal)
    except BudgetError:
        assert min(h * ratio for h in num_heads) < 1
        return
    assert len(kept) == len(num_heads)
    for heads, keep in zip(num_heads, kept, strict=True):
        allowed = [
            n for n in range(1, heads + 1) if n <= heads * ratio + 1e-6 and (not equal or heads % n == 0)
        ]
        assert keep == max(allowed)


def test_examples():
    assert UNIFORM.allocate([8, 8], 0.5, equal=True) == [4, 4]
    assert UNIFORM.allocate([8, 8], 0.7, equal=True) == [4, 4]
    assert UNIFORM.allocate([8, 8], 0.7, equal=False) == [5, 5]
    assert UNIFORM.allocate([3], 2 / 3, equal=False) == [2]
    assert UNIFORM.allocate([3], 2 / 3, equal=True) == [1]
    assert UNIFORM.allocate([4, 12], 0.5, equal=False) == [2, 6]


def test_too_small_a_budget_names_the_layer_and_the_nearest_that_is_met():
    with pytest.raises(BudgetError, match=r"leaves layer 0 less than one of its 8 KV heads.*0\.1250"):
        UNIFORM.allocate([8, 8], 0.12, equal=False)
    with pytest.raises(BudgetError, match=r"layer 1 less than one of its 4 KV heads.*0\.2500"):
        UNIFORM.allocate([8, 4], 0.2, equal=True)
    assert UNIFORM.allocate([8, 4], 0.25, equal=True) == [2, 1]


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
def test_registered_under_its_own_name(name):
    assert ALLOCATIONS[name].name == name
    assert ALLOCATIONS[name].summary
    assert ALLOCATIONS[name].needs in {"nothing", "weights", "moments"}
