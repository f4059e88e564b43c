"""QCQA's second stage against the exact split."""

import itertools
import random

import numpy as np
import pytest
import torch
from allocation_slots import brute_force, losses_fall, slots
from hypothesis import given, settings

from gqakit.errors import UsageError
from gqakit.planning.allocation import ALLOCATIONS
from gqakit.planning.allocation.base import LayerEntry, pick

SHORT = ALLOCATIONS["qcqa_layers"].configured({"population": 20, "generations": 20})
KNAPSACK = ALLOCATIONS["knapsack"]


def uneven(layers: int, heads: int) -> list[LayerEntry]:
    """Layers whose losses fall at different paces."""
    rng = np.random.default_rng(0)
    steps = rng.exponential(size=(layers, heads - 1)) * rng.uniform(0.1, 3, size=(layers, 1))
    steps = np.sort(steps, axis=1)  # the last heads to go cost most
    losses = steps.cumsum(1)[:, ::-1]
    return [
        LayerEntry(f"layer {index}", heads, 2, tuple(range(1, heads + 1)), (*row, 0.0))
        for index, row in enumerate(losses.tolist())
    ]


@settings(max_examples=30)
@given(slots())
def test_a_front_of_points_that_add_up(given_slots):
    best = brute_force(given_slots)
    found = SHORT.front(given_slots, tied=False, rng=random.Random(0))
    for point in found:
        chosen = [
            slot.losses[slot.counts.index(n)] for slot, n in zip(given_slots, point.counts, strict=True)
        ]
        assert point.loss == pytest.approx(sum(chosen))
        assert point.size == sum(slot.width * n for slot, n in zip(given_slots, point.counts, strict=True))
        assert point.loss >= best[point.size] - 1e-9
    for smaller, larger in itertools.pairwise(found):
        assert smaller.size < larger.size
        assert smaller.loss > larger.loss
    assert found[0].size == min(best)
    assert found[-1].loss <= best[max(best)] + 1e-9


@pytest.mark.parametrize("kv_ratio", [0.75, 0.5, 0.25])
def test_near_the_exact_split_and_far_below_the_even_one(kv_ratio):
    given_slots = uneven(12, 12)
    found, exact, even = (
        pick(ALLOCATIONS[name].front(given_slots, tied=False, rng=random.Random(0)), given_slots, kv_ratio)
        for name in ("qcqa_layers", "knapsack", "uniform")
    )
    assert exact.loss - 1e-9 <= found.loss <= 1.1 * exact.loss
    assert found.loss < 0.9 * even.loss


def test_smallest_largest_and_even_points_are_there_from_the_start():
    given_slots = uneven(20, 4)
    quick = SHORT.configured({"generations": 1})
    found = quick.front(given_slots, tied=False, rng=random.Random(0))
    assert (found[0].counts, found[-1].counts) == ((1,) * 20, (4,) * 20)
    for count in (2, 3):
        even = sum(slot.losses[count - 1] for slot in given_slots)
        assert pick(found, given_slots, count / 4).loss <= even + 1e-9


def test_only_the_generator_given_decides():
    given_slots, found = uneven(10, 8), []
    quick = SHORT.configured({"generations": 2})
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        found.append(quick.front(given_slots, tied=False, rng=random.Random("a")))
    assert found[0] == found[1]
    assert quick.front(given_slots, tied=False, rng=random.Random("b")) != found[0]


def test_tied_slots_need_no_search():
    given_slots = [losses_fall("a", 4, [1, 2, 4]), losses_fall("b", 4, [2, 3, 4])]
    tied = SHORT.front(given_slots, tied=True, rng=random.Random(0))
    assert tied == KNAPSACK.front(given_slots, tied=True, rng=random.Random(0))
    assert [point.counts for point in tied] == [(2, 2), (4, 4)]


def test_losses_that_are_missing_or_not_finite_are_refused():
    fine = losses_fall("fine", 4, [1, 2, 4])
    for wrong in ((), (1.0, float("nan"), 0.0)):
        with pytest.raises(ValueError, match=r"layer 3: losses .* want one finite for each"):
            SHORT.front(
                [fine, LayerEntry("layer 3", 4, 2, (1, 2, 4), wrong)], tied=False, rng=random.Random(0)
            )


def test_options_are_recorded_and_checked():
    options = {"population": 100, "generations": 100, "crossover": 0.9, "mutation": None}
    assert ALLOCATIONS["qcqa_layers"].options() == options
    for name, value in [("generations", 0), ("population", 1), ("crossover", -1), ("mutation", 2)]:
        with pytest.raises(UsageError, match=rf"qcqa_layers: {name} = {value} must be at least"):
            ALLOCATIONS["qcqa_layers"].configured({name: value})
