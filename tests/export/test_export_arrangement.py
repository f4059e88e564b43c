"""Arrangements: every query head keeps its heads, once, whatever the maps and the engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gqakit.models.head_layout import Arrangement, equalise_model, groups_of, pad_layer, pad_model
from gqakit.models.remote_code.heads import HeadMaps

HEADS = 8
labels = st.lists(st.integers(0, 4), min_size=HEADS, max_size=HEADS).map(
    lambda raw: tuple(sorted(set(raw)).index(label) for label in raw)
)
layers = st.lists(st.builds(HeadMaps, labels, labels, st.none()), min_size=1, max_size=4)


def reads(arrangement: Arrangement) -> dict[int, tuple[int, int]]:
    """For each query head of the checkpoint, the key and value head that its live place reads."""
    size, rest = divmod(arrangement.num_heads, arrangement.num_kv_heads)
    assert rest == 0
    found = {}
    for place, (query, live) in enumerate(zip(arrangement.query, arrangement.live, strict=True)):
        if live:
            assert query not in found
            found[query] = (arrangement.key[place // size], arrangement.value[place // size])
    return found


def check(heads: HeadMaps, arrangement: Arrangement) -> None:
    assert reads(arrangement) == dict(enumerate(zip(*heads[:2], strict=True)))


@given(layers)
def test_a_padded_layer_has_the_heads_of_the_refinement(model: list[HeadMaps]) -> None:
    for heads in model:
        made = pad_layer(heads)
        check(heads, made)
        assert made.num_kv_heads == len(set(zip(*heads[:2], strict=True)))


@given(layers)
def test_a_padded_model_is_alike_in_all_layers_with_the_fewest_heads(model: list[HeadMaps]) -> None:
    made = pad_model(model)
    for heads, arrangement in zip(model, made, strict=True):
        check(heads, arrangement)
    assert {(a.num_heads, a.num_kv_heads) for a in made} == {(made[0].num_heads, made[0].num_kv_heads)}
    assert made[0].num_kv_heads == max(len(groups_of(heads)) for heads in model)


@given(layers)
def test_an_equalised_model_has_no_padding(model: list[HeadMaps]) -> None:
    made = equalise_model(model)
    for heads, arrangement in zip(model, made, strict=True):
        check(heads, arrangement)
        assert not arrangement.is_padded
        assert arrangement.num_heads == HEADS
    assert len({a.num_kv_heads for a in made}) == 1
    assert made[0].num_kv_heads >= pad_model(model)[0].num_kv_heads


@pytest.mark.parametrize("labels", [(0, 0, 0, 0, 1, 1, 1, 1), (0, 1, 2, 3, 4, 5, 6, 7)])
def test_equal_contiguous_groups_stay(labels: tuple[int, ...]) -> None:
    heads = HeadMaps(labels, labels)
    for arrangement in (pad_layer(heads), pad_model([heads, heads])[1], equalise_model([heads])[0]):
        assert not arrangement.is_padded
        for order in (arrangement.query, arrangement.key, arrangement.value):
            assert order == tuple(range(len(order)))


def test_a_place_that_is_not_live_repeats_a_head_of_its_group() -> None:
    heads = HeadMaps((0, 1, 0, 0), (0, 1, 0, 0))
    assert pad_layer(heads) == Arrangement((0, 2, 3, 1, 1, 1), (True,) * 4 + (False,) * 2, (0, 1), (0, 1))
