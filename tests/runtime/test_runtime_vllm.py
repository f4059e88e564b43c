"""vLLM's Transformers backend, as far as it meets our model code; benchmarks/vllm_check.py runs the real one."""

import sys
from types import ModuleType

import pytest
import torch
from runtime_models import CONTIGUOUS, DIFFERING, SAME, UNEQUAL, build, grouped_raw, stock_config, tokens
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoConfig

from gqakit.models.registration import register


def equal_groups(module, query, key, value, attention_mask, **kwargs):
    """As vLLM's function takes and gives it: one sequence, groups equal and in order, `[tokens, heads · d]`."""
    config = module.config.per_layer_config[module.layer_idx]
    assert query.shape[1] == config.num_attention_heads
    assert key.shape[1] == value.shape[1] == config.num_key_value_heads
    assert query.shape[1] % key.shape[1] == 0
    key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], 1) for each in (key, value))
    out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=kwargs["scaling"])
    return out.transpose(1, 2).flatten(2)[0], None


@pytest.fixture
def in_vllm(monkeypatch):
    """vLLM is loaded, and its attention function registered."""
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    AttentionInterface.register("vllm", equal_groups)
    yield
    AttentionInterface._global_mapping.pop("vllm")


@pytest.mark.parametrize(
    ("family", "maps"),
    [
        *((family, SAME) for family in ("llama", "mistral", "qwen2", "qwen3")),
        ("llama", [(UNEQUAL, UNEQUAL)] * 4),  # the same number in each layer
        ("llama", [(CONTIGUOUS, CONTIGUOUS)] * 4),  # nothing to pad
    ],
)
@torch.no_grad()
def test_groups_are_padded_on_their_way(family, maps, in_vllm):
    register()
    model = build(grouped_raw(stock_config(family), maps))
    for layer, (key_map, _) in enumerate(maps):
        count = max(key_map) + 1
        largest = max(map(key_map.count, range(count)))
        assert model.config.per_layer_config[layer].num_attention_heads == count * largest
        assert model.config.per_layer_config[layer].num_key_value_heads == count
    ids = tokens()[:1]
    expected = model(ids, use_cache=False).logits
    for _ in range(2):  # asked for twice, padded once
        model.set_attn_implementation("vllm")
    torch.testing.assert_close(model(ids, use_cache=False).logits, expected, atol=1e-4, rtol=1e-4)


def test_keys_and_values_apart_are_refused(in_vllm):
    register()
    model = build(grouped_raw(stock_config("llama"), DIFFERING))
    with pytest.raises(ValueError, match="as many value heads as key heads"):
        model.set_attn_implementation("vllm")


def test_without_vllm_its_attention_is_unknown():
    register()
    model = build(grouped_raw(stock_config("llama"), SAME))
    with pytest.raises(ValueError, match="vllm"):
        model.set_attn_implementation("vllm")


def test_without_vllm_the_config_says_what_the_checkpoint_does():
    register()
    config = AutoConfig.for_model(**grouped_raw(stock_config("llama"), [(UNEQUAL, UNEQUAL)] * 4))
    assert config.per_layer_config[0].num_attention_heads == 8
