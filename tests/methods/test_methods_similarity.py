"""The methods that keep similar heads together find planted groups, by what each of them calls similar."""

import random

import pytest
import torch
from methods_layers import BOTH, HEAD_DIM, WIDTH, forbidden, heads_of, normal, random_heads, two_faced

from gqakit.core.grouping import Partition
from gqakit.core.rope import Channels
from gqakit.grouping_methods import METHODS
from gqakit.grouping_methods.base import HeadFeatures, Sizes

TEXT, WEIGHTS = [0, 1, 2, 1, 0, 2, 0], [0, 0, 1, 2, 1, 2, 2]
SIMILARITIES = ["weight_similarity", "activation_similarity", "aligned", "asymgqa"]


def grouped(name: str, heads: HeadFeatures, num_groups: int, sizes: Sizes | None = None) -> list[int]:
    sizes = sizes or Sizes(1, heads.num_heads - num_groups + 1)
    found = METHODS[name].group(heads, num_groups, sizes=sizes, rng=random.Random(0))
    return list(found.labels)


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("sides", [BOTH, ("key",), ("value",)], ids="+".join)
def test_length_does_not_matter_direction_does(name, sides):
    base = normal(2, 3, HEAD_DIM, WIDTH)
    length = 0.2 + 5 * normal(2, 7, 1, 1, seed=1).abs()
    key, value = base[:, TEXT] * length
    heads = heads_of(key, value, sides=sides, cost=forbidden)
    assert grouped(name, heads, 3) == TEXT


@pytest.mark.parametrize("name", SIMILARITIES)
def test_text_or_weights(name):
    heads, moment = two_faced(TEXT, WEIGHTS)
    layer = heads_of(heads, moment=moment, cost=forbidden)
    assert METHODS[name].needs == ("weights" if name == "weight_similarity" else "moments")
    assert grouped(name, layer, 3) == (WEIGHTS if name == "weight_similarity" else TEXT)


@pytest.mark.parametrize("name", ["activation_similarity", "aligned", "asymgqa"])
def test_keys_and_values_count_alike_whatever_their_scale(name):
    key, value = normal(2, 9, HEAD_DIM, WIDTH, seed=2)
    found = [grouped(name, heads_of(key, scale * value), 3) for scale in (1e-3, 1.0, 1e3)]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", SIMILARITIES)
def test_the_objective_is_additive_and_least(name):
    heads = random_heads(8, seed=3)
    method, sizes = METHODS[name], Sizes(2, 3)
    objective = method.objective(heads)
    found = method.group(heads, 3, sizes=sizes, rng=random.Random(0))
    here = sum(map(objective, found.groups))
    for seed in range(50):
        order = list(range(8))
        random.Random(seed).shuffle(order)
        other = Partition.from_groups([order[:3], order[3:6], order[6:]])
        assert sum(map(objective, other.groups)) >= here - 1e-9


def turned_copies(labels: list[int], channels: Channels) -> torch.Tensor:
    """Copies of a few heads, each turned as the structure allows: pairs by an angle, free channels by anything."""
    heads = []
    for copy, label in enumerate(labels):
        turn = torch.linalg.qr(normal(HEAD_DIM, HEAD_DIM, seed=50 + copy))[0]
        if channels.first:
            angle = torch.tensor(0.7 * copy + 0.5, dtype=torch.float64)
            turn = angle.cos() * torch.eye(HEAD_DIM, dtype=torch.float64)
            first, second = list(channels.first), list(channels.second)
            turn[second, first], turn[first, second] = angle.sin(), -angle.sin()
        heads.append(turn @ normal(HEAD_DIM, 30, seed=label))
    return torch.stack(heads)


@pytest.mark.parametrize(
    "channels", [Channels.mixing(HEAD_DIM), Channels.rotary(HEAD_DIM)], ids=["free", "rotary"]
)
def test_aligned_sees_through_turns(channels):
    labels = [0, 1, 2, 1, 0, 2]
    heads = heads_of(turned_copies(labels, channels), channels=channels, sides=("key",), cost=forbidden)
    assert grouped("aligned", heads, 3) == labels
    objective = METHODS["aligned"].objective(heads)
    assert objective((0, 4)) == pytest.approx(0, abs=1e-9)
    assert METHODS["activation_similarity"].objective(heads)((0, 4)) > 0.1


def test_aligned_keeps_groups_as_equal_as_can_be():
    labels = [0, 0, 0, 0, 1, 2]
    heads = heads_of(turned_copies(labels, Channels.mixing(HEAD_DIM)))
    method = METHODS["aligned"]

    def sizes_with(limits: Sizes, num_groups: int = 3) -> list[int]:
        return sorted(method.group(heads, num_groups, sizes=limits, rng=random.Random(0)).sizes)

    assert sizes_with(Sizes(1, 4)) == [2, 2, 2]
    assert sizes_with(Sizes(1, 3), 4) == [1, 1, 2, 2]
    assert sizes_with(Sizes(2, 4), 2) == [3, 3]
