"""The knapsack against every way to spend."""

import itertools
import random

import pytest
from allocation_slots import brute_force, losses_fall, slots
from hypothesis import given
from hypothesis import strategies as st

from gqakit.errors import BudgetError
from gqakit.planning.allocation import ALLOCATIONS
from gqakit.planning.allocation.base import FrontPoint, LayerEntry, pick, undominated

KNAPSACK = ALLOCATIONS["knapsack"]


def front(given_slots: list[LayerEntry], tied: bool = False) -> list[FrontPoint]:
    return KNAPSACK.front(given_slots, tied=tied, rng=random.Random(0))


@given(slots())
def test_every_point_is_the_best_of_its_size_and_none_is_missing(given_slots):
    best = brute_force(given_slots)
    found = front(given_slots)
    sizes = [point.size for point in found]
    assert sizes == sorted(set(sizes))
    for point in found:
        chosen = [
            slot.losses[slot.counts.index(n)] for slot, n in zip(given_slots, point.counts, strict=True)
        ]
        assert point.loss == pytest.approx(sum(chosen))
        assert point.size == sum(slot.width * n for slot, n in zip(given_slots, point.counts, strict=True))
        assert point.loss == pytest.approx(best[point.size])
    for size, loss in best.items():
        matching = [point.loss for point in found if point.size <= size]
        assert matching
        assert min(matching) <= loss + 1e-9


@given(slots(), st.floats(0.01, 1.2))
def test_within_a_budget_nothing_is_better(given_slots, kv_ratio):
    whole = sum(slot.num_heads * slot.width for slot in given_slots)
    within = [loss for size, loss in brute_force(given_slots).items() if size <= whole * kv_ratio + 1e-6]
    if not within:
        with pytest.raises(BudgetError, match="cannot be met"):
            pick(front(given_slots), given_slots, kv_ratio)
        return
    point = pick(front(given_slots), given_slots, kv_ratio)
    assert point.size <= whole * kv_ratio + 1e-6
    assert point.loss == pytest.approx(min(within))


def test_too_small_a_budget_names_the_nearest_that_is_met():
    given_slots = [losses_fall("a", 4, [1, 2, 4]), losses_fall("b", 4, [2, 4])]
    with pytest.raises(BudgetError, match=r"0\.3 cannot be met.*0\.3750 \(6 of 16"):
        pick(front(given_slots), given_slots, 0.3)
    assert pick(front(given_slots), given_slots, 0.375).counts == (1, 2)


def test_slots_of_different_width_are_weighed_by_what_they_keep():
    keys = LayerEntry("keys", 2, 1, (1, 2), (1.0, 0.0))
    both = LayerEntry("both", 2, 2, (1, 2), (1.5, 0.0))
    assert [(p.counts, p.size, p.loss) for p in front([keys, both])] == [
        ((1, 1), 3, 2.5),
        ((2, 1), 4, 1.5),
        ((1, 2), 5, 1.0),
        ((2, 2), 6, 0.0),
    ]


def test_of_equals_the_smaller_is_enough():
    same = LayerEntry("same", 4, 2, (1, 2, 4), (1.0, 1.0, 0.5))
    assert [point.counts for point in front([same])] == [(1,), (4,)]


def test_tied_slots_keep_the_same_number():
    given_slots = [losses_fall("a", 4, [1, 2, 4]), losses_fall("b", 4, [2, 3, 4])]
    found = front(given_slots, tied=True)
    assert [point.counts for point in found] == [(2, 2), (4, 4)]
    assert found[0].loss == given_slots[0].losses[1] + given_slots[1].losses[0]


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), max_size=12))
def test_undominated_points_lose_less_than_every_smaller_one(drawn):
    points = [FrontPoint((size,), size, float(loss)) for size, loss in drawn]
    kept = undominated(points)
    for smaller, larger in itertools.pairwise(kept):
        assert smaller.size < larger.size
        assert smaller.loss > larger.loss
    for point in points:
        assert any(each.size <= point.size and each.loss <= point.loss for each in kept)
