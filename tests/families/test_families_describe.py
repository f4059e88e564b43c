"""Describing a checkpoint from its config and the shapes of its tensors."""

import re

import pytest

from gqakit.core.rope import Channels
from gqakit.errors import FamilyError
from gqakit.models.describe import describe_model
from gqakit.models.families import FAMILIES
from gqakit.models.spec import ModelSpec

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def shapes_of(config: dict, biases: str = "", norms: bool = False) -> dict[str, tuple[int, ...]]:
    """The attention tensors that a config asks for; `biases` names the projections with one."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    dim = config.get("head_dim") or hidden // heads
    kv = config.get("num_key_value_heads") or heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (64, hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}.self_attn."
        for name, rows in (("q", heads * dim), ("k", kv * dim), ("v", kv * dim)):
            shapes[f"{at}{name}_proj.weight"] = (rows, hidden)
            if name in biases:
                shapes[f"{at}{name}_proj.bias"] = (rows,)
        shapes[f"{at}o_proj.weight"] = (hidden, heads * dim)
        if norms:
            shapes[f"{at}q_norm.weight"] = shapes[f"{at}k_norm.weight"] = (dim,)
    return shapes


def describe(config: dict, shapes: dict | None = None, **kwargs) -> ModelSpec:
    return describe_model(FAMILIES, config, shapes or shapes_of(config, **kwargs), 2)


@pytest.mark.parametrize("family", ["gemma2", "llama", "mistral", "qwen2", "qwen3"])
def test_a_plain_checkpoint(family):
    spec = describe({**CONFIG, "model_type": family})
    assert spec.family is FAMILIES[family]
    assert (spec.num_layers, spec.num_heads, spec.head_dim, spec.hidden_size) == (2, 8, 4, 32)
    assert spec.key_heads == spec.value_heads == (4, 4)
    assert spec.channels == Channels.rotary(4)
    assert spec.biased == frozenset()
    assert not spec.is_grouped
    assert spec.cache.bytes_per_token == (4 + 4) * 2 * 4 * 2


def test_head_dim_is_the_configs_and_not_the_quotient():
    spec = describe({**CONFIG, "head_dim": 10})
    assert spec.head_dim == 10
    with pytest.raises(FamilyError, match=r"q_proj.weight is \[80, 32\], the config asks for \[32, 32\]"):
        describe(CONFIG, shapes_of({**CONFIG, "head_dim": 10}))


def test_without_kv_heads_it_is_multi_head():
    config = {k: v for k, v in CONFIG.items() if k != "num_key_value_heads"}
    assert describe(config).key_heads == (8, 8)
    assert describe({**config, "num_key_value_heads": None}).key_heads == (8, 8)


def test_biases_are_what_the_checkpoint_has():
    spec = describe({**CONFIG, "model_type": "qwen2"}, biases="qkv")
    assert spec.biased == {"query", "key", "value"}
    assert describe(CONFIG, biases="qv").biased == {"query", "value"}


def test_normalised_keys_are_locked():
    assert describe({**CONFIG, "model_type": "qwen3"}, norms=True).channels == Channels.normalised(4)


@pytest.mark.parametrize(
    "rope",
    [
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"rope_type": "default"}, "partial_rotary_factor": 0.5},
        {"rope_scaling": None, "partial_rotary_factor": 0.5},
    ],
)
def test_partial_rotary(rope):
    spec = describe({**CONFIG, "model_type": "nemotron", "head_dim": 8, **rope})
    assert spec.channels == Channels.rotary(8, 4)
    with pytest.raises(
        FamilyError, match=r"partial_rotary_factor is 0\.5, but transformers' llama rotates all"
    ):
        describe({**CONFIG, "head_dim": 8, **rope})
    assert describe({**CONFIG, "partial_rotary_factor": 1.0}).channels == Channels.rotary(4, 4)


def test_partial_rotary_of_one_type_of_layers():
    rope = {"full_attention": {"partial_rotary_factor": 0.5}, "sliding_attention": {"rope_type": "default"}}
    with pytest.raises(FamilyError, match="transformers' olmo3 rotates all channels"):
        describe({**CONFIG, "model_type": "olmo3", "rope_parameters": rope}, norms=True)


def test_what_follows_a_share_is_what_transformers_reads_one_in():
    """Where its code has no word of a share, a config that states one would be merged by channels that rotate after all."""
    import importlib
    import inspect

    def reads(name):
        path = name.replace("-", "_").removesuffix("_text")
        module = importlib.import_module(f"transformers.models.{path}.modeling_{path}")
        return "partial_rotary_factor" in inspect.getsource(module)

    rotary = {n: f for n, f in FAMILIES.items() if f.positions == "rotary" and not f.texts}
    follows = {n for n, f in rotary.items() if f.partly_rotary or f.rotary_share != 1}
    assert follows - {"gptj", "codegen"} == {n for n in rotary if reads(n)}  # these two state channels


def test_rotary_width_in_channels_of_neighbouring_pairs():
    config = {**CONFIG, "model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
    shapes = {
        f"transformer.h.{layer}.attn.{name}_proj.weight": (32, 32)
        for layer in range(2)
        for name in ("q", "k", "v", "out")
    }
    spec = describe_model(FAMILIES, config, shapes, 2)
    assert spec.channels == Channels.rotary(8, 4, "interleaved")
    for width in (5, 10):
        with pytest.raises(FamilyError, match=f"rotary_dim {width} of a head of 8 channels"):
            describe_model(FAMILIES, {**config, "rotary_dim": width}, shapes, 2)


def test_grouped_checkpoint():
    layers = [
        {"key_head_of_query": [0, 0, 0, 0, 1, 1, 2, 2], "value_head_of_query": [0] * 8},
        {"key_head_of_query": [0, 0, 1, 1, 2, 2, 3, 3], "value_head_of_query": [0, 0, 0, 0, 1, 1, 1, 1]},
    ]
    config = {**CONFIG, "model_type": "gqakit_llama", "gqakit": {"stacks": ["decoder"], "layers": layers}}
    shapes = shapes_of(CONFIG)
    for layer, (key, value) in enumerate([(3, 1), (4, 2)]):
        shapes[f"model.layers.{layer}.self_attn.k_proj.weight"] = (key * 4, 32)
        shapes[f"model.layers.{layer}.self_attn.v_proj.weight"] = (value * 4, 32)
    spec = describe(config, shapes)
    assert spec.is_grouped
    assert (spec.key_heads, spec.value_heads) == ((3, 4), (1, 2))
    assert spec.family is FAMILIES["llama"]
    with pytest.raises(FamilyError, match="'gqakit' is missing or malformed"):
        describe({**config, "gqakit": None}, shapes)
    with pytest.raises(FamilyError, match="describes 1 layers, the model has 2"):
        describe({**config, "gqakit": {"stacks": ["decoder"], "layers": layers[:1]}}, shapes)


def test_every_disagreement_is_reported_at_once():
    shapes = shapes_of(CONFIG)
    del shapes["model.layers.0.self_attn.v_proj.weight"]
    shapes["model.layers.1.self_attn.k_proj.weight"] = (20, 32)
    shapes["model.layers.1.self_attn.o_proj.weight"] = (32, 30)
    shapes["model.layers.2.self_attn.q_proj.weight"] = (32, 32)
    with pytest.raises(FamilyError) as caught:
        describe(CONFIG, shapes)
    message = str(caught.value)
    for part in (
        "model.layers.0.self_attn.v_proj.weight is missing",
        "model.layers.1.self_attn.k_proj.weight is [20, 32], the config asks for [16, 32]",
        "model.layers.1.self_attn.o_proj.weight is [32, 30], the config asks for [32, 32]",
        "model.layers.2.self_attn.q_proj.weight exists, but the config has 2 layers",
    ):
        assert part in message


def test_many_disagreements_are_counted():
    with pytest.raises(FamilyError, match="and 12 more"):
        describe({**CONFIG, "num_hidden_layers": 5}, {f"x.{index}": (1,) for index in range(5)})


def test_more_layers_than_tensors_are_refused_at_once():
    with pytest.raises(
        FamilyError, match=r"num_hidden_layers = 1000000, but the checkpoint holds 11 tensors"
    ):
        describe({**CONFIG, "num_hidden_layers": 1_000_000}, {**shapes_of(CONFIG), "x": (1,), "y": (1,)})


def test_unknown_family_names_what_was_seen():
    shapes = {"transformer.h.0.attn.c_attn.weight": (32, 96), "transformer.wte.weight": (64, 32)}
    config = {**CONFIG, "model_type": "strange", "architectures": ["StrangeModel"]}
    with pytest.raises(FamilyError) as caught:
        describe(config, shapes)
    message = str(caught.value)
    listed = f"`gqakit families` lists the {len(FAMILIES)} that are"
    for part in ("'strange'", "StrangeModel", "2 tensors", "transformer.h.0.attn.c_attn.weight", listed):
        assert part in message
    with pytest.raises(FamilyError, match="Did you mean 'llama'"):
        describe({**config, "model_type": "lama"}, shapes)
    assert "wte" not in message
    with pytest.raises(FamilyError, match=r"config\.json has no model_type"):
        describe({}, shapes)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"hidden_size": None}, "hidden_size = None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_attention_heads": "8"}, "num_attention_heads = '8'"),
        ({"head_dim": 4.0}, "head_dim = 4.0"),
        ({"num_key_value_heads": True}, "num_key_value_heads = True"),
        ({"num_key_value_heads": -4}, "num_key_value_heads = -4"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 8 is no multiple of num_key_value_heads = 3"),
        ({"hidden_size": 30}, "hidden_size 30 is no multiple of 8 heads"),
    ],
)
def test_numbers_that_make_no_sense(change, seen):
    with pytest.raises(FamilyError, match=re.escape(seen)):
        describe({**CONFIG, **change}, shapes_of(CONFIG))


def test_several_wrong_numbers_at_once():
    with pytest.raises(FamilyError, match=r"num_hidden_layers = None, hidden_size = -1"):
        describe({**CONFIG, "num_hidden_layers": None, "hidden_size": -1}, shapes_of(CONFIG))
