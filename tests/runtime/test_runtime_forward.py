"""Grouped models compute what the stock multi-head model with repeated heads computes."""

import pytest
import torch
from runtime_models import (
    DIFFERING,
    FAMILIES,
    IDENTITIES,
    MAPS,
    SAME,
    build,
    grouped_raw,
    pair,
    stock_config,
    tokens,
)
from transformers import DynamicCache

LEFT_PADDED = torch.tensor([[0] * 4 + [1] * 7, [1] * 11])


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_equal_the_stock_model(family, maps):
    grouped, stock = pair(family, MAPS[maps])
    ids = tokens()
    torch.testing.assert_close(grouped(ids).logits, stock(ids).logits, atol=1e-5, rtol=1e-5)
    out, expected = (model(ids, attention_mask=LEFT_PADDED).logits for model in (grouped, stock))
    torch.testing.assert_close(out[0, 4:], expected[0, 4:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[1], expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("length", [31, 40])  # either side of PACKED_QUERY_LIMIT
@torch.no_grad()
def test_long_masked_input_equals_the_stock_model(maps, length):
    grouped, stock = pair("llama", MAPS[maps])
    ids = tokens(length=length)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    out, expected = (model(ids, attention_mask=mask).logits[:, 5:] for model in (grouped, stock))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cached_steps_equal_the_whole(family, maps):
    grouped, _ = pair(family, MAPS[maps])
    ids = tokens()
    whole = grouped(ids).logits
    cache = DynamicCache(config=grouped.config)
    first = grouped(ids[:, :4], past_key_values=cache).logits
    several = grouped(ids[:, 4:7], past_key_values=cache).logits
    single = [grouped(ids[:, i : i + 1], past_key_values=cache).logits for i in range(7, 11)]
    torch.testing.assert_close(torch.cat([first, several, *single], 1), whole, atol=1e-5, rtol=1e-5)
    for layer, (key_map, value_map) in zip(cache.layers, MAPS[maps], strict=True):
        assert layer.keys.shape[:3] == (2, max(key_map) + 1, 11)
        assert layer.values.shape[:3] == (2, max(value_map) + 1, 11)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_identity_maps_are_the_stock_model(family):
    raw = stock_config(family)
    stock, grouped = build(raw), build(grouped_raw(raw, IDENTITIES))
    grouped.load_state_dict(stock.state_dict())
    ids = tokens()
    assert torch.equal(grouped(ids).logits, stock(ids).logits)


@pytest.mark.parametrize("maps", MAPS)
@torch.no_grad()
def test_sliding_window(maps):
    grouped, stock = pair("mistral", MAPS[maps], sliding_window=5)
    full, _ = pair("mistral", MAPS[maps])
    ids = tokens(length=16)
    expected = stock(ids).logits
    torch.testing.assert_close(grouped(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(full(ids).logits, expected, atol=1e-2)
    cache = DynamicCache(config=grouped.config)
    steps = [grouped(ids[:, i : i + 1], past_key_values=cache).logits for i in range(16)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-5, rtol=1e-5)
    assert cache.layers[0].keys.shape[2] == 4


@pytest.mark.parametrize("maps", MAPS)
@torch.no_grad()
def test_bfloat16_is_close(maps):
    grouped, stock = (model.bfloat16() for model in pair("qwen3", MAPS[maps], initializer_range=0.1))
    ids = tokens()
    exact = stock.float()(ids).logits
    stock.bfloat16()
    cache = DynamicCache(config=grouped.config)
    grouped(ids[:, :-1], past_key_values=cache)
    last = grouped(ids[:, -1:], past_key_values=cache).logits[:, -1].float()  # the single-row path
    stock_error = (stock(ids).logits.float() - exact).abs().max()
    assert (grouped(ids).logits.float() - exact).abs().max() <= 2 * stock_error
    assert (last - exact[:, -1]).abs().max() <= 2 * stock_error


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_the_sums_over_repeated_heads(maps, checkpointing):
    grouped, stock = pair("llama", MAPS[maps])
    if checkpointing:
        # Its name in the newest transformers, and in the oldest that is supported.
        enable = getattr(grouped, "activation_checkpointing_enable", None)
        (enable or grouped.gradient_checkpointing_enable)()
    ids = tokens()
    for model in (grouped, stock):
        model.train()
        model(ids, labels=ids, use_cache=False).loss.backward()
    for index, layer_maps in enumerate(MAPS[maps]):
        ours, theirs = (model.model.layers[index].self_attn for model in (grouped, stock))
        for name, head_of_query in zip(("k_proj", "v_proj"), layer_maps, strict=True):
            per_query_head = getattr(theirs, name).weight.grad.unflatten(0, (8, -1))
            expected = torch.zeros(max(head_of_query) + 1, *per_query_head.shape[1:])
            expected.index_add_(0, torch.tensor(head_of_query), per_query_head)
            grad = getattr(ours, name).weight.grad.unflatten(0, (-1, 8))
            torch.testing.assert_close(grad, expected, atol=1e-5, rtol=1e-4)


def test_training_after_inference_mode_works():
    grouped, _ = pair("llama", DIFFERING)
    with torch.inference_mode():
        grouped(tokens())
    grouped(tokens(), labels=tokens()).loss.backward()


def test_attention_dropout_only_in_training():
    grouped, _ = pair("llama", SAME, attention_dropout=0.5)
    ids = tokens()
    with torch.no_grad():
        assert torch.equal(grouped(ids).logits, grouped(ids).logits)
        grouped.train()
        assert not torch.allclose(grouped(ids).logits, grouped(ids).logits)


def test_fresh_projections_start_as_the_family_starts_them():
    torch.manual_seed(0)
    raw = grouped_raw(stock_config("qwen2", hidden_size=256, initializer_range=0.02), SAME)
    attention = build(raw).model.layers[2].self_attn
    assert attention.k_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
