"""`grouped_config` and the reading of what it writes."""

import copy

import pytest
import torch
from runtime_models import DIFFERING, FAMILIES, MAPS, SAME, grouped_raw, pair, stock_config, tokens
from transformers import AutoConfig, AutoModelForCausalLM

from gqakit.errors import PlanError


def test_config_of_a_grouped_checkpoint():
    raw = stock_config("llama")
    before = copy.deepcopy(raw)
    new = grouped_raw(raw, DIFFERING)
    assert raw == before
    assert new["model_type"] == "gqakit_llama"
    assert new["architectures"] == ["GqakitLlamaForCausalLM"]
    assert new["auto_map"] == {
        "AutoConfig": "configuration_gqakit.GqakitLlamaConfig",
        "AutoModel": "modeling_gqakit.GqakitLlamaModel",
        "AutoModelForCausalLM": "modeling_gqakit.GqakitLlamaForCausalLM",
        "AutoModelForSequenceClassification": "modeling_gqakit.GqakitLlamaForSequenceClassification",
    }
    assert new["num_key_value_heads"] == 8
    assert new["per_layer_config"] == {
        str(i): {"num_key_value_heads": n} for i, n in ((0, 2), (1, 3), (3, 3))
    }
    assert new["allow_global_per_layer_attribute_access"] is True
    assert new["gqakit"]["format_version"] == 2
    assert new["gqakit"]["base_model_type"] == "llama"
    assert new["gqakit"]["stacks"] == ["decoder"]
    assert new["gqakit"]["head_dim"] == 8
    assert new["gqakit"]["projections"] == {"key": "k_proj", "value": "v_proj"}
    assert new["gqakit"]["layers"][2] == {
        "attention": "layers.2.self_attn",
        "key_head_of_query": list(range(8)),
        "value_head_of_query": [0] * 8,
    }


def test_equal_layers_need_no_per_layer_config():
    new = grouped_raw(stock_config("qwen3"), [SAME[1]] * 4)
    assert new["num_key_value_heads"] == 3
    assert "per_layer_config" not in new
    assert "allow_global_per_layer_attribute_access" not in new


def test_other_per_layer_settings_stay():
    raw = stock_config("llama", per_layer_config={"01": {"rms_norm_eps": 1e-4, "num_key_value_heads": 8}})
    raw["allow_global_per_layer_attribute_access"] = True
    new = grouped_raw(raw, [SAME[1]] * 4)
    assert new["per_layer_config"] == {"1": {"rms_norm_eps": 1e-4}}


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_sees_each_layers_heads(family):
    config = AutoConfig.for_model(**grouped_raw(stock_config(family), SAME))
    if isinstance(config.per_layer_config, dict):
        pytest.skip("this transformers does not know per_layer_config")
    assert [layer.num_key_value_heads for layer in config.per_layer_config] == [2, 3, 8, 1]


def test_maps_that_do_not_fit():
    with pytest.raises(PlanError, match="must list 4 layers, got 3"):
        grouped_raw(stock_config("llama"), SAME[:3])
    gap, short = [0, 0, 0, 0, 2, 2, 2, 2], [0, 1]
    with pytest.raises(
        PlanError, match=r"layer 1, key_head_of_query: labels.*layer 3, value_head_of_query: expected"
    ):
        grouped_raw(stock_config("llama"), [SAME[0], (gap, SAME[0][1]), SAME[0], (SAME[0][0], short)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "format_version is 1, this code reads 2"),
        ({"base_model_type": "mistral"}, "does not fit model_type 'gqakit_llama'"),
        ({"layers": None}, "must list 4 layers, got None"),
    ],
)
def test_malformed_sections_are_refused(change, message):
    raw = grouped_raw(stock_config("llama"), SAME)
    raw["gqakit"] |= change
    with pytest.raises(ValueError, match=message):
        AutoConfig.for_model(**raw)


def test_a_model_needs_head_maps():
    with pytest.raises(ValueError, match="needs a `gqakit` section"):
        AutoModelForCausalLM.from_config(AutoConfig.for_model("gqakit_llama", **FAMILIES["llama"]))


def test_attention_functions():
    grouped, _ = pair("llama", SAME)
    assert grouped.config._attn_implementation == "gqakit"
    for name in ("sdpa", "flex_attention"):
        with pytest.raises(ValueError, match=f'"{name}" cannot run grouped heads.*"gqakit"'):
            grouped.set_attn_implementation(name)
        with pytest.raises(ValueError, match="cannot run grouped heads"):
            AutoModelForCausalLM.from_config(copy.deepcopy(grouped.config), attn_implementation=name)
    again = AutoModelForCausalLM.from_config(grouped.config, attn_implementation="gqakit")
    assert again.config._attn_implementation == "gqakit"


@pytest.mark.parametrize("maps", MAPS)
@torch.no_grad()
def test_attention_weights_are_those_of_eager_attention(maps):
    grouped, stock = pair("llama", MAPS[maps])
    stock.set_attn_implementation("eager")
    ours, theirs = (model(tokens(), output_attentions=True).attentions for model in (grouped, stock))
    assert len(ours) == len(theirs)
    for layer, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(layer, expected, atol=1e-5)
    plain = grouped(tokens())
    assert plain.attentions is None
    grouped.config.output_attentions = True  # as a stock model whose attention is eager takes it
    assert torch.equal(grouped(tokens()).attentions[0], ours[0])


def test_eager_attention_is_a_grouped_models_own():
    grouped, _ = pair("llama", SAME)
    logits = grouped(tokens()).logits
    grouped.set_attn_implementation("eager")
    # With a mask in place of "causal" torch takes another kernel, which rounds otherwise on some processors.
    torch.testing.assert_close(grouped(tokens()).logits, logits, rtol=1e-4, atol=1e-5)
    assert grouped.config._attn_implementation == "gqakit_eager"
    grouped.set_attn_implementation("gqakit")
    grouped.config._attn_implementation = "eager"  # what Whisper's generation does
    torch.testing.assert_close(grouped(tokens()).logits, logits, rtol=1e-4, atol=1e-5)
    again = AutoModelForCausalLM.from_config(copy.deepcopy(grouped.config), attn_implementation="eager")
    assert again.config._attn_implementation == "gqakit_eager"
    assert again(tokens(), output_attentions=True).attentions[0].shape[-1] == tokens().shape[1]
