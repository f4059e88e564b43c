"""The sizes of real models, built without weights: what is planned for a checkpoint is what its model has."""

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gqakit.models.describe import describe_model
from gqakit.models.families import FAMILIES
from gqakit.models.grouped_config import grouped_config
from gqakit.models.layers import layer_shapes, parameters_of_layer
from gqakit.models.registration import register
from gqakit.models.spec import ModelSpec

ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": ROPE,
    "tie_word_embeddings": False,
}
CONFIGS = {
    "Llama-3.1-70B": LLAMA
    | {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "Llama-3.1-405B": LLAMA
    | {
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
    },
    "Gemma-2-9B": {  # 16 heads of 256 channels in a width of 3,584
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "vocab_size": 256000,
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 256,
    },
    "Qwen3-4B": {  # 32 heads of 128 channels in a width of 2,560, keys normalised
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    "Phi-2": {  # as its config.json says it: no number of KV heads, 32 of 80 channels rotate
        "model_type": "phi",
        "architectures": ["PhiForCausalLM"],
        "vocab_size": 51200,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "partial_rotary_factor": 0.4,
        "qk_layernorm": False,
    },
    "gpt-oss-20b": {  # 64 heads of 64 channels in a width of 2,880, every second layer with a window
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "attention_bias": True,
    },
}
PARAMETERS = {  # as their model cards say
    "Llama-3.1-70B": 70.6e9,
    "Llama-3.1-405B": 405.9e9,
    "Gemma-2-9B": 9.24e9,
    "Qwen3-4B": 4.02e9,
    "Phi-2": 2.78e9,
    "gpt-oss-20b": 20.9e9,
}
BYTES_PER_TOKEN = {  # 2 · layers · KV heads · head_dim · 2 bytes
    "Llama-3.1-70B": 327_680,
    "Llama-3.1-405B": 516_096,
    "Gemma-2-9B": 344_064,
    "Qwen3-4B": 147_456,
    "Phi-2": 327_680,
    "gpt-oss-20b": 49_152,
}
Shapes = dict[str, tuple[int, ...]]


def built(config: dict) -> tuple[PreTrainedModel, Shapes]:
    """The model of a raw config in bfloat16 without memory, and the shapes of its tensors."""
    register(config["model_type"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    return model, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def uneven_maps(spec: ModelSpec) -> list[tuple[list[int], list[int]]]:
    """For each layer a key map and a value map with other numbers of groups, of any sizes in any order."""
    rng = random.Random(0)

    def some(most: int) -> list[int]:
        count = rng.randint(1, most)
        labels = list(range(count)) + [rng.randrange(count) for _ in range(spec.num_heads - count)]
        rng.shuffle(labels)
        return labels

    return [(some(heads), some(heads)) for heads in spec.key_heads]


@pytest.mark.parametrize("name", CONFIGS)
def test_planned_shapes_are_those_of_the_grouped_model(name):
    config = CONFIGS[name]
    source, shapes = built(config)
    assert sum(p.numel() for p in source.parameters()) == pytest.approx(PARAMETERS[name], rel=0.01)
    spec = describe_model(FAMILIES, config, shapes, 2)
    assert spec.cache.bytes_per_token == BYTES_PER_TOKEN[name]

    maps = uneven_maps(spec)
    counts = [(max(key) + 1, max(value) + 1) for key, value in maps]
    assert len(set(counts)) > 10
    planned = [layer_shapes(spec, layer, *each) for layer, each in enumerate(counts)]
    raw = grouped_config(config, spec, maps)
    grouped, found = built(raw)
    assert found == shapes | {name: shape for layer in planned for name, shape in layer.items()}

    again = describe_model(FAMILIES, raw, found, 2)
    assert list(zip(again.key_heads, again.value_heads, strict=True)) == counts
    for layer, expected in enumerate(planned):
        parameters = parameters_of_layer(again, grouped, layer)
        assert {name: tuple(each.shape) for name, each in parameters.items()} == expected
    cached = sum(key + value for key, value in counts) * spec.head_dim * 2
    assert again.cache.bytes_per_token == cached
    assert bytes_in_cache(grouped, length=5) == 5 * cached


@torch.no_grad()
def bytes_in_cache(model: PreTrainedModel, length: int) -> int:
    """The size of the cache that a forward pass leaves behind."""
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    cache = model(ids, use_cache=True).past_key_values
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
