"""Why some families cannot be converted, each in one line: by name, or by what a config says of a family not seen before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqakit.models.families.base import lookup

_LATENT = "keys and values are made of one latent vector (MLA), which is what it caches, so there are no KV heads to merge"
_LINEAR = "layers of linear attention keep a state of fixed size in place of keys and values, so they have none to merge"
_MIXED = "layers of another kind (state space, recurrence, convolution) keep no keys and values, so they have none to merge"
_NONE = "it has no attention: its layers keep a state of fixed size, so there is no KV cache to shrink"
_SHARED = (
    "layers read the keys and values of another layer, which merging would change for all of them at once"
)
_DISENTANGLED = (
    "attention is disentangled: keys meet queries and positions apart, so no one map of keys keeps the scores"
)
_RELATIVE = (
    "scores have terms of relative positions with projections of their own, which merged keys would not meet"
)
_GATED_BIAS = "the bias of relative positions is gated by the input of each head, which gqakit's runtime does not make again"
_SPARSE = (
    "attention is sparse by code of its own that shapes blocks of positions by the number of query heads"
)
_HASHED = "which positions see each other is decided by hashes of the queries, which serve as keys"
_DIFFERENCE = (
    "weights of two query heads are subtracted and their values joined, so a KV head is no unit to merge"
)
_AFTER = "queries and keys are normalised after the rotary embedding, where no map of keys can be moved to"
_GATED = "each channel of what attention puts out is gated before the output projection, so values cannot be turned"
_INNER = "what attention puts out is normalised before the output projection, so values cannot be turned"
_CONVOLVED = "keys and values are convolved over positions, channel by channel, so they cannot be turned"
_CHOSEN = "which query heads a position has is chosen by a router, so no query head is tied to a KV head"
_UNEQUAL = "layers differ in their numbers of heads, or values are narrower than keys"

_BY_REASON: Mapping[str, tuple[str, ...]] = {
    _LATENT: (
        *(
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "deepseek_v4",
            "kimi_k2",
            "minicpm3",
            "longcat_flash",
            "youtu",
        ),
        *("glm4_moe_lite", "glm_moe_dsa", "axk1", "axk2", "hy_v4", "dots3_note", "dots3_note_text"),
    ),
    _LINEAR: (
        *(
            "minimax",
            "qwen3_next",
            "qwen3_5",
            "qwen3_5_text",
            "qwen3_5_moe",
            "qwen3_5_moe_text",
            "kimi_linear",
        ),
        *("qwen4_exp", "qwen4_exp_text", "bailing_hybrid", "olmo_hybrid"),
    ),
    _MIXED: (
        *(
            "jamba",
            "bamba",
            "zamba",
            "zamba2",
            "falcon_h1",
            "nemotron_h",
            "granitemoehybrid",
            "recurrent_gemma",
        ),
        *("lfm2", "lfm2_moe", "lfm3"),
    ),
    _NONE: ("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "fnet"),
    _SHARED: (
        *("gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"),
        *("gemma4_assistant", "gemma4_unified_assistant"),
    ),
    _GATED_BIAS: ("wavlm",),
    _DISENTANGLED: ("deberta", "deberta-v2", "sew-d"),
    _RELATIVE: ("xlnet",),
    _SPARSE: ("big_bird", "bigbird_pegasus", "longformer", "led", "longt5"),
    _HASHED: ("reformer",),
    _DIFFERENCE: ("diffllama",),
    _AFTER: ("hunyuan_v1_moe", "nanochat"),
    _GATED: ("afmoe", "laguna"),
    _INNER: ("bitnet",),
    _CONVOLVED: ("inkling_text", "inkling2_text", "zaya"),
    _CHOSEN: ("jetmoe",),
    _UNEQUAL: ("mimo_v2_flash",),
}
REFUSED: Mapping[str, str] = {name: reason for reason, names in _BY_REASON.items() for name in names}
"""The reason by model type."""

_SIGNS = (
    ("kv_lora_rank|q_lora_rank", _LATENT),
    ("linear_num_key_heads|linear_num_heads|linear_attn_alpha_factor", _LINEAR),
    ("mamba_d_state|n_mamba_heads|mamba_num_heads|ssm_state_size|state_size|lru_width|conv_L_cache", _MIXED),
    ("num_kv_shared_layers", _SHARED),
    ("pos_att_type", _DISENTANGLED),
)


def refusal(model_type: str, config: Mapping[str, Any]) -> str | None:
    """Why a family that gqakit does not have cannot be converted; None where nothing is known against it.

    Args:
        model_type: of the config. config: the parsed `config.json`; of its parts only `text_config` is looked at.
    """
    if model_type in REFUSED:
        return REFUSED[model_type]
    inner = config.get("text_config")
    parts = (config, inner) if isinstance(inner, Mapping) else (config,)
    return next((why for keys, why in _SIGNS if any(lookup(part, keys) for part in parts)), None)
