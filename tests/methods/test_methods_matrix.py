"""Every grouping method, with every number of heads and groups: a new method is tested by being registered."""

import itertools
import random

import pytest
import torch

from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.moments import weight_stats
from gqakit.methods import METHODS, LayerHeads

SIZES = [(1, 1), (4, 2), (6, 3), (7, 3), (8, 1), (8, 8), (8, 4), (12, 5), (12, 4), (16, 2)]


def layer_heads(num_heads: int, seed: int = 0) -> LayerHeads:
    """Random heads, whose groups cost what they do in no particular order."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, num_heads, 4, 6, generator=rng)
    key, value = Projection(weight[0]), Projection(weight[1])
    stats = weight_stats(AttentionWeights(key, key, value, torch.zeros(num_heads, 6, 4)))
    inner = torch.einsum("haga->hg", stats.gram)

    def spread(group: tuple[int, ...]) -> float:
        index = list(group)
        return float(inner[index, index].sum() - inner[index][:, index].sum() / len(index))

    return LayerHeads(num_heads, spread, stats)


def cases():
    for name in sorted(METHODS):
        for (heads, groups), equal in itertools.product(SIZES, (False, True)):
            if (not equal or heads % groups == 0) and (name != "mqa" or groups == 1):
                yield pytest.param(name, heads, groups, equal, id=f"{name}-{heads}-{groups}-{equal}")


@pytest.mark.parametrize(("name", "num_heads", "num_groups", "equal"), list(cases()))
def test_a_valid_partition_that_only_the_given_generator_decides(name, num_heads, num_groups, equal):
    heads = layer_heads(num_heads)

    def group() -> tuple[int, ...]:
        return METHODS[name].group(heads, num_groups, equal=equal, rng=random.Random("7/3")).labels

    random.seed(1)
    torch.manual_seed(1)
    partition = METHODS[name].group(heads, num_groups, equal=equal, rng=random.Random("7/3"))
    assert (partition.num_heads, partition.num_groups) == (num_heads, num_groups)
    if equal:
        assert partition.is_equal
    random.seed(2)
    torch.manual_seed(2)
    assert group() == partition.labels


@pytest.mark.parametrize("name", sorted(METHODS))
def test_registered_under_its_own_name_with_all_it_states(name):
    method = METHODS[name]
    assert method.name == name
    assert method.summary
    assert method.source
    assert method.needs in {"nothing", "weights", "moments"}


def test_neighbour_takes_consecutive_heads():
    heads = layer_heads(8)
    neighbour = METHODS["neighbour"]
    rng = random.Random(0)
    assert neighbour.group(heads, 4, equal=True, rng=rng).groups == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert neighbour.group(heads, 3, equal=False, rng=rng).groups == ((0, 1, 2), (3, 4, 5), (6, 7))


def test_random_differs_with_the_seed():
    heads = layer_heads(8)
    drawn = {METHODS["random"].group(heads, 4, equal=True, rng=random.Random(seed)) for seed in range(10)}
    assert len(drawn) > 5


def test_mqa_makes_one_group_only():
    with pytest.raises(ValueError, match=r"one group, 2 were asked for: --kv-heads 1"):
        METHODS["mqa"].group(layer_heads(4), 2, equal=True, rng=random.Random(0))


def test_weight_similarity_finds_heads_that_point_the_same_way():
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(2, 3, 4, 6, generator=rng)
    labels = [0, 1, 2, 1, 0, 2, 0]
    length = 0.2 + 5 * torch.rand(7, 1, 1, generator=rng)  # length does not matter, direction does
    key, value = (Projection(b[labels] * length) for b in base)
    weights = weight_stats(AttentionWeights(key, key, value, torch.zeros(7, 6, 4)))

    def no_cost(group: tuple[int, ...]) -> float:
        raise AssertionError("weight_similarity must not look at the merge rule's error")

    heads = LayerHeads(7, no_cost, weights)
    found = METHODS["weight_similarity"].group(heads, 3, equal=False, rng=random.Random(0))
    assert list(found.labels) == labels
