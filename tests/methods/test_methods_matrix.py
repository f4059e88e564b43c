"""Every grouping method, with every number of heads and groups: a new method is tested by being registered."""

import itertools
import random
from dataclasses import FrozenInstanceError

import pytest
import torch
from methods_layers import BOTH, random_heads

from gqakit.errors import UsageError
from gqakit.grouping_methods import METHODS
from gqakit.grouping_methods.base import Sizes

# Nothing to decide; groups that cannot and that can be equal, searched exactly; and more heads than the exact search takes.
COUNTS = [(1, 1), (8, 1), (8, 8), (7, 3), (8, 4), (16, 6)]
QUICK = {"qcqa": {"generations": 8}, "asymgqa": {"iterations": 1000}}  # as good a test, in less time
TESTED = {name: method.configured(QUICK.get(name, {})) for name, method in METHODS.items()}
SIDES = [BOTH, ("key",), ("value",)]


def cases():
    """Method, heads, groups and the sizes allowed: any, equal, and capped as tightly as can be."""
    for name, (heads, groups) in itertools.product(sorted(METHODS), COUNTS):
        if METHODS[name].only_count in (None, groups):
            limits = {
                Sizes.of(heads, groups): "any",
                Sizes.of(heads, groups, equal=True): "equal",
                Sizes.of(heads, groups, most=-(-heads // groups)): "capped",
            }
            for sizes, kind in limits.items():
                if sizes is not None:
                    yield pytest.param(name, heads, groups, sizes, id=f"{name}-{heads}-{groups}-{kind}")


@pytest.mark.parametrize(("name", "num_heads", "num_groups", "sizes"), list(cases()))
def test_a_valid_partition_that_only_the_given_generator_decides(name, num_heads, num_groups, sizes):
    method, heads = TESTED[name], random_heads(num_heads)
    found = []
    for seed in (1, 2):
        random.seed(seed)
        torch.manual_seed(seed)
        found.append(method.group(heads, num_groups, sizes=sizes, rng=random.Random("7/3")))
    assert found[0] == found[1]
    assert (found[0].num_heads, found[0].num_groups) == (num_heads, num_groups)
    assert sizes.hold(found[0])


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("sides", SIDES, ids="+".join)
def test_keys_only_values_only_or_both(name, sides):
    method, heads = TESTED[name], random_heads(8, sides=sides)
    groups = method.only_count or 3
    sizes = Sizes.of(8, groups)
    assert sizes is not None
    partition = method.group(heads, groups, sizes=sizes, rng=random.Random(0))
    assert partition.num_groups == groups
    objective = method.objective(heads)
    assert all(objective(group) >= 0 for group in partition.groups)
    assert all(objective((head,)) == pytest.approx(0, abs=1e-9) for head in range(8))
    gap = method.gap(heads, partition)
    assert gap is None or 0 <= gap <= 1


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_count_gets_the_same_partition_whatever_else_is_asked_for(name):
    method, heads = TESTED[name], random_heads(7)
    counts = [1] if method.only_count else [1, 2, 3, 5, 7]
    sizes = {count: Sizes(1, 7 - count + 1) for count in counts}
    together = method.groups(heads, sizes, seed="0/4")
    assert list(together) == counts
    for count in counts:
        assert together[count].num_groups == count
        assert method.groups(heads, {count: sizes[count]}, seed="0/4") == {count: together[count]}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_registered_under_its_own_name_with_all_it_states(name):
    method = METHODS[name]
    assert method.name == name
    assert method.summary
    assert method.source
    assert method.needs in {"nothing", "weights", "moments"}
    assert (type(method).__doc__ or "").strip()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_options_are_frozen_checked_and_named(name):
    method = METHODS[name]
    assert method.configured({}) == method
    assert method.configured(method.options()) == method
    with pytest.raises(UsageError, match=r"no_such_option"):
        method.configured({"no_such_option": 1})
    for option, value in method.options().items():
        with pytest.raises(FrozenInstanceError):
            setattr(method, option, value)
        if type(value) in (int, float):
            with pytest.raises(UsageError, match=name):
                method.configured({option: "many"})


def test_only_mqa_is_for_one_count():
    assert {name: method.only_count for name, method in METHODS.items() if method.only_count} == {"mqa": 1}


def test_neighbour_takes_consecutive_heads():
    heads, neighbour, rng = random_heads(8), METHODS["neighbour"], random.Random(0)
    assert neighbour.group(heads, 4, sizes=Sizes(2, 2), rng=rng).groups == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert neighbour.group(heads, 3, sizes=Sizes(1, 6), rng=rng).groups == ((0, 1, 2), (3, 4, 5), (6, 7))


def test_random_differs_with_the_seed():
    heads = random_heads(8)
    drawn = {METHODS["random"].group(heads, 4, sizes=Sizes(2, 2), rng=random.Random(s)) for s in range(10)}
    assert len(drawn) > 5
