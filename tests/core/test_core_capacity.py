"""The size of a cache and the spellings of a budget."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gqakit.core.budget import GIB, Budget, CacheShape, fits, resolve_budget

SOURCE = CacheShape((8,) * 4, (8,) * 4, head_dim=16, element_bytes=2)  # 2048 bytes a token


def test_bytes():
    shape = CacheShape((3, 1), (2, 2), head_dim=10, element_bytes=4)
    assert shape.bytes_per_token == 8 * 10 * 4
    assert shape.bytes_at(7) == 7 * 320
    assert shape.bytes_at(7, batch=3) == 21 * 320
    assert shape.ratio_to(CacheShape((8, 8), (8, 8), 10, 2)) == 0.25  # precision does not matter


def test_layers_must_be_as_many():
    with pytest.raises(ValueError, match="2 layers of keys, 1 of values"):
        CacheShape((1, 1), (1,), 8, 2)


@given(st.integers(1, 8))
def test_every_spelling_is_the_same_budget(heads):
    ratio = heads / 8
    assert resolve_budget(SOURCE, kv_ratio=ratio).kv_ratio == ratio
    assert resolve_budget(SOURCE, kv_heads=heads).kv_ratio == ratio
    assert resolve_budget(SOURCE, kv_bytes_per_token=heads * 256).kv_ratio == ratio
    gib = heads * 256 * 1000 * 3 / GIB
    assert resolve_budget(SOURCE, kv_gib=gib, context=1000, batch=3).kv_ratio == pytest.approx(ratio)
    assert resolve_budget(SOURCE, kv_gib=gib * 2 / 3, context=2000).kv_ratio == pytest.approx(ratio)


def test_budget_is_echoed_as_it_was_asked():
    assert resolve_budget(SOURCE, kv_ratio=0.5) == Budget(0.5, "kv_ratio 0.5")
    assert resolve_budget(SOURCE, kv_heads=2) == Budget(0.25, "kv_heads 2", kv_heads=2)
    assert resolve_budget(SOURCE, kv_bytes_per_token=512).asked == "kv_bytes_per_token 512"
    asked = resolve_budget(SOURCE, kv_gib=1e-4, context=100).asked
    assert asked == "kv_gib 0.0001, context 100, batch 1"


def test_more_memory_than_the_source_needs_asks_for_nothing():
    assert resolve_budget(SOURCE, kv_gib=80.0, context=10).kv_ratio == 1.0


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({}, "exactly one .* got none"),
        ({"kv_ratio": 0.5, "kv_heads": 4}, "got `kv_ratio` and `kv_heads`"),
        ({"kv_ratio": 0.5, "context": 100}, "belong to `kv_gib`"),
        ({"kv_ratio": 0.5, "batch": 2}, "belong to `kv_gib`"),
        ({"kv_ratio": 0.0}, "above 0 and at most 1"),
        ({"kv_ratio": -0.1}, "above 0 and at most 1"),
        ({"kv_ratio": 1.01}, "kv_ratio 1.01 is a kv_ratio of 1.01; .* source keeps 2048 bytes per token"),
        ({"kv_ratio": math.nan}, "above 0 and at most 1"),
        ({"kv_ratio": math.inf}, "above 0 and at most 1"),
        ({"kv_heads": 0}, "8 KV heads per layer, so 1 to 8"),
        ({"kv_heads": 9}, "8 KV heads per layer, so 1 to 8"),
        ({"kv_bytes_per_token": 0}, "above 0 and at most 1"),
        ({"kv_bytes_per_token": 2049}, "above 0 and at most 1"),
        ({"kv_gib": 1.0}, "needs `context`"),
        ({"kv_gib": 1.0, "context": 0}, "needs `context`"),
        ({"kv_gib": 1.0, "context": 9, "batch": 0}, "`batch` must be at least 1"),
        ({"kv_gib": 0.0, "context": 9}, "above 0 and at most 1"),
        ({"kv_gib": -1.0, "context": 9}, "above 0 and at most 1"),
    ],
)
def test_bad_budgets_say_why(given_, message):
    with pytest.raises(ValueError, match=message):
        resolve_budget(SOURCE, **given_)


def test_kv_heads_needs_equal_layers():
    uneven = CacheShape((8, 4), (8, 4), 16, 2)
    with pytest.raises(ValueError, match=r"same number in every layer; the source has \[4, 8\]"):
        resolve_budget(uneven, kv_heads=2)
    assert resolve_budget(uneven, kv_ratio=0.5).kv_ratio == 0.5


@given(st.integers(1, 128), st.integers(0, 128))
def test_a_fraction_of_heads_fits_exactly(num_heads, kept):
    kept = min(kept, num_heads)
    assert fits(kept, num_heads, kept / num_heads)
    assert not fits(kept + 1, num_heads, kept / num_heads)


def test_a_hair_of_slack_and_no_more():
    assert fits(2, 3, 0.6666666)
    assert fits(2, 3, 2 / 3)
    assert not fits(2, 3, 0.666)
    assert not fits(2, 3, 0.1 + 0.2 + 1 / 3)
