"""What cannot be converted says why in one line, on a checkpoint of each such family and of ones not seen before."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gqakit.errors import FamilyError
from gqakit.models.families import FAMILIES
from gqakit.models.families.refused import REFUSED, refusal
from gqakit.models.source import Source

_TELLS = re.compile("mamba|ssm|kv_lora_rank|linear_.*heads|linear_attn|num_kv_shared|lru_width|conv_L_cache")


def saved(folder: Path, config: dict) -> Path:
    """A checkpoint as far as its description looks: a config and a tensor."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"model.embed_tokens.weight": torch.zeros(4, 4)}, folder / "model.safetensors")
    return folder


def said_of(folder: Path, config: dict) -> str:
    with pytest.raises(FamilyError) as caught:
        Source.open(saved(folder, config))
    return str(caught.value)


_TINY = {
    **{"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32},
    **{
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
_LINEAR_HEADS = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "layer_types": ["linear_attention"] * 2,
}
REAL = {
    "DeepseekV2": {"kv_lora_rank": 8, "q_lora_rank": 8, "first_k_dense_replace": 2},
    "DeepseekV3": {"kv_lora_rank": 8, "q_lora_rank": 8, "first_k_dense_replace": 2},
    "MiniMax": {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2},
    "Qwen3Next": {**_LINEAR_HEADS, "num_experts": 2, "moe_intermediate_size": 8},
    "Mamba": {},
    "FalconMamba": {},
    "RecurrentGemma": {"lru_width": 32, "head_dim": 8},
    "Rwkv": {},
    "Gemma3nText": {"num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 2, "head_dim": 8},
    "DiffLlama": {},
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "Deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
}


@pytest.mark.parametrize("kind", REAL)
def test_a_small_model_of_transformers_is_refused_by_its_reason(kind: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")(**_TINY, **REAL[kind])
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(FamilyError) as caught:
        Source.open(tmp_path)
    name = config.model_type
    assert str(caught.value) == f"a {name} cannot be converted: {REFUSED[name]}"


def test_each_says_why_in_one_line(tmp_path: Path) -> None:
    for name, reason in REFUSED.items():
        said = said_of(tmp_path, {"model_type": name, "num_hidden_layers": 2, "hidden_size": 32})
        assert said == f"a {name} cannot be converted: {reason}"
        assert "\n" not in said


def test_none_is_a_family_and_reasons_are_short() -> None:
    assert not REFUSED.keys() & FAMILIES.keys()
    for reason in set(REFUSED.values()):
        assert len(reason) < 130
        assert reason[0].islower()
        assert not reason.endswith(".")


def test_every_language_model_of_transformers_that_cannot_be_says_why() -> None:
    """A new release with another hybrid or latent family fails here until it has its reason."""
    silent = []
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if model_type in FAMILIES or model_type in REFUSED:
            continue
        try:
            config = CONFIG_MAPPING[model_type]().to_dict()
        except Exception:  # noqa: BLE001  # some have no defaults
            continue
        inner = config.get("text_config")
        config = {**config, **(inner if isinstance(inner, dict) else {})}
        tells = [key for key in config if _TELLS.search(key) and config[key]]
        if tells and refusal(model_type, config) is None:
            silent.append((model_type, tells))
    assert silent == []


@pytest.mark.parametrize(
    ("key", "words"),
    [
        *(
            ("kv_lora_rank", "latent"),
            ("linear_num_key_heads", "linear attention"),
            ("lru_width", "recurrence"),
        ),
        *(
            ("num_kv_shared_layers", "another layer"),
            ("pos_att_type", "disentangled"),
            ("state_size", "state"),
        ),
    ],
)
def test_brothers_that_no_table_names_are_known_by_their_config(key: str, words: str, tmp_path: Path) -> None:
    assert words in said_of(tmp_path, {"model_type": "tomorrow", key: 8})
    assert words in said_of(tmp_path, {"model_type": "tomorrow_vl", "text_config": {key: 8}})
    assert "is not known to gqakit" in said_of(tmp_path, {"model_type": "tomorrow", key: 0})
