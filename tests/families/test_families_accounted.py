"""What changes attention and is not understood is refused, never converted wrongly."""

import re

import pytest
import transformers

from gqakit.errors import FamilyError
from gqakit.models.describe import describe_model
from gqakit.models.families import FAMILIES
from gqakit.models.families.switches import HARMLESS, SWITCHES, attention_keys

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def shapes(**beside: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The attention tensors of `CONFIG`, and in each layer what is `beside` (`__` for a dot)."""
    found: dict[str, tuple[int, ...]] = {"model.norm.weight": (32,)}
    for layer in range(2):
        at = f"model.layers.{layer}.self_attn."
        rows = {"q_proj.weight": (32, 32), "k_proj.weight": (16, 32), "v_proj.weight": (16, 32)}
        rows |= {"o_proj.weight": (32, 32)} | {
            name.replace("__", "."): shape for name, shape in beside.items()
        }
        found |= {at + name: shape for name, shape in rows.items()}
    return found


_SPEAKS_OF_ATTENTION = re.compile(
    "attn|attention|qk|query|key|head|clip|cap|sink|alibi|rope|norm|gate|kv|shared|sliding|layer_types"
)


def test_every_key_of_the_installed_config_classes_is_accounted_for() -> None:
    """A new release of transformers that gives a family another switch fails here, and not in a user's hands."""
    unknown = {
        f"{model_type}.{key}"
        for model_type, family in FAMILIES.items()
        for key in attention_keys(getattr(transformers, family.config)().to_dict())
        if _SPEAKS_OF_ATTENTION.search(key) and key not in HARMLESS and key not in SWITCHES
    }
    assert unknown - {"t5.is_gated_act", "mpt.attn_config"} == set()  # the feed-forward's; keys of its own


def test_what_a_family_handles_is_a_switch() -> None:
    for family in FAMILIES.values():
        assert set(family.handles) <= SWITCHES.keys()
    assert not HARMLESS & SWITCHES.keys()


def test_the_default_config_of_every_family_turns_on_nothing_unknown() -> None:
    from gqakit.models.families.switches import switched_on

    for family in FAMILIES.values():
        assert switched_on(family, getattr(transformers, family.config)().to_dict()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("qk_layernorm", True), ("clip_qkv", 8.0), ("attn_logit_softcapping", 30.0), ("kv_lora_rank", 512)),
        *(("layer_types", ["full_attention", "linear_attention"]), ("no_rope_layers", [1, 0])),
        *(("position_embedding_type", "relative_key"), ("num_kv_shared_layers", 2), ("use_alibi", True)),
        ("scale_attn_weights", False),
    ],
)
def test_a_switch_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(FamilyError, match=f"{key} = ") as caught:
        describe_model(FAMILIES, {**CONFIG, key: value}, shapes(), 2)
    assert "\n" not in str(caught.value)
    assert SWITCHES[key].effect in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("qk_layernorm", False), ("clip_qkv", None), ("attn_logit_softcapping", None), ("use_alibi", 0)),
        *(("layer_types", ["full_attention", "sliding_attention"]), ("scale_attn_weights", True)),
        *(("position_embedding_type", "absolute"), ("layer_types", None)),
    ],
)
def test_a_switch_that_is_off_is_no_matter(key: str, value: object) -> None:
    describe_model(FAMILIES, {**CONFIG, key: value}, shapes(), 2)


@pytest.mark.parametrize(
    ("family", "switches"),
    [
        ("gemma2", {"attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 4}),
        ("granite", {"attention_multiplier": 0.015}),
        ("smollm3", {"no_rope_layers": [1, 0], "no_rope_layer_interval": 2}),
        ("starcoder2", {"sliding_window": 4096}),
    ],
)
def test_the_families_that_run_a_switch_take_it(family: str, switches: dict[str, object]) -> None:
    describe_model(FAMILIES, {**CONFIG, "model_type": family, **switches}, shapes(), 2)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        *(("olmo", "clip_qkv", 8.0), ("gemma", "use_bidirectional_attention", True)),
        *(("olmoe", "clip_qkv", 8.0), ("gemma2", "use_bidirectional_attention", True)),
    ],
)
def test_a_family_with_a_switch_that_it_does_not_run_refuses_it(family: str, key: str, value: object) -> None:
    output = FAMILIES[family].stacks[0].names.output
    tensors = {name.replace("o_proj", output): shape for name, shape in shapes().items()}
    with pytest.raises(FamilyError, match=f"this {family} .* {key} = {value}"):
        describe_model(FAMILIES, {**CONFIG, "model_type": family, key: value}, tensors, 2)


@pytest.mark.parametrize("family", ["cohere", "phi", "stablelm", "glm4_moe"])
def test_the_config_and_the_tensors_must_agree_on_normalised_keys(family: str) -> None:
    data = FAMILIES[family]
    output, switch = data.stacks[0].names.output, data.norm_switch or ""
    tensors = {name.replace("o_proj", output): shape for name, shape in shapes().items()}
    share = 1.0 if family == "cohere" else 0.5
    config = {**CONFIG, "model_type": family, "partial_rotary_factor": share}
    assert describe_model(FAMILIES, config, tensors, 2).behind_norm is None
    with pytest.raises(
        FamilyError, match=f"{switch} = True, but the checkpoint has no tensor .*{data.query_norm}"
    ):
        describe_model(FAMILIES, {**config, switch: True}, tensors, 2)
    dim = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    for layer in range(CONFIG["num_hidden_layers"]):
        for norm in (data.query_norm, data.key_norm):
            tensors[f"model.layers.{layer}.self_attn.{norm}.weight"] = (dim,)
    assert describe_model(FAMILIES, {**config, switch: True}, tensors, 2).behind_norm is not None
    with pytest.raises(
        FamilyError, match=f"{switch} = None, but the checkpoint has tensors .*{data.query_norm}"
    ):
        describe_model(FAMILIES, config, tensors, 2)
    del tensors[f"model.layers.1.self_attn.{data.key_norm}.weight"]
    with pytest.raises(FamilyError, match=f"layers.1.self_attn.{data.key_norm}.weight is missing"):
        describe_model(FAMILIES, {**config, switch: True}, tensors, 2)


@pytest.mark.parametrize(
    "name", ["q_norm__weight", "k_layernorm__norms__0__weight", "sinks", "gate_proj__weight", "head_scale"]
)
def test_an_unknown_tensor_below_attention_is_refused_by_name(name: str) -> None:
    dotted = f"model.layers.0.self_attn.{name.replace('__', '.')} and 1 more"
    with pytest.raises(FamilyError, match=re.escape(dotted)):
        describe_model(FAMILIES, CONFIG, shapes(**{name: (4,)}), 2)


def test_switches_and_tensors_are_named_together() -> None:
    with pytest.raises(FamilyError) as caught:
        describe_model(FAMILIES, {**CONFIG, "clip_qkv": 8.0}, shapes(sinks=(8,), gate__weight=(8, 32)), 2)
    for part in ("clip_qkv", "self_attn.sinks", "self_attn.gate.weight"):
        assert part in str(caught.value)


def test_what_is_known_to_stand_beside_the_projections_is_kept() -> None:
    describe_model(FAMILIES, CONFIG, shapes(rotary_emb__inv_freq=(2,)), 2)
    describe_model(
        FAMILIES, {**CONFIG, "model_type": "qwen3"}, shapes(q_norm__weight=(4,), k_norm__weight=(4,)), 2
    )
