"""Config keys that change what attention computes, so that no model with one that its family does not run is converted.

A family that runs a switch lists it in `Family.handles`. tests/families/test_families_accounted.py holds every key of the
installed transformers' config classes whose name speaks of attention against this table and `HARMLESS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gqakit.models.families.base import Family


@dataclass(frozen=True)
class Switch:
    """What a config key does to attention, in words; `neutral` are the values with which it does nothing.

    Without any, those are the values that are false. None is always neutral; a list is looked at item by item.
    """

    effect: str
    neutral: tuple[Any, ...] = ()

    def is_on(self, value: Any) -> bool:
        """Whether a config with this value computes another attention."""
        values = value if isinstance(value, list | tuple) else [value]
        return any(each not in self.neutral if self.neutral else each for each in values if each is not None)


_NORM = Switch("queries and keys are normalised")
_CLIP = Switch("queries, keys and values are clipped")
_CAP = Switch("the scores are capped")
_GATE = Switch("the output of attention is gated")
_SINK = Switch("each query head has a sink beside the scores")
_SCALE = Switch("the scores are scaled in a way of the model's own")
_LATENT = Switch("keys and values are made of one latent vector (MLA), so there are no KV heads to merge")
_SHARED = Switch("layers share the keys and values of another layer")
_ALIBI = Switch("each query head has a bias that grows with the distance")
_POSITIONS = Switch("some layers have no rotary embedding")
_UNEQUAL = Switch("layers differ in shape")
_CAUSAL = Switch("which positions see each other is set by the config")

SWITCHES: Mapping[str, Switch] = {
    **dict.fromkeys(("qk_layernorm", "qk_norm", "use_qk_norm", "use_qk_layernorm", "qk_l2norm"), _NORM),
    **dict.fromkeys(
        ("query_key_norm", "attention_qk_norm", "key_norm", "query_norm", "v_norm", "qk_ln"), _NORM
    ),
    **dict.fromkeys(("clip_qkv", "qkv_clip", "attn_clip"), _CLIP),
    **dict.fromkeys(
        ("attn_logit_softcapping", "attention_logit_cap", "attn_logit_cap", "attn_softcap"), _CAP
    ),
    **dict.fromkeys(("attn_output_gate", "attention_gate", "gated_attention", "use_gated_attention"), _GATE),
    **dict.fromkeys(("attention_sinks", "attn_sinks", "use_attention_sinks", "attention_sink_bias"), _SINK),
    **dict.fromkeys(
        ("query_pre_attn_scalar", "attention_multiplier", "attn_scale", "attention_scale"), _SCALE
    ),
    **dict.fromkeys(("scale_attn_by_inverse_layer_idx", "attn_temperature_tuning", "softmax_scale"), _SCALE),
    "scale_attn_weights": Switch(_SCALE.effect, (True,)),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), _LATENT),
    **dict.fromkeys(("num_kv_shared_layers", "kv_sharing", "cla_share_factor", "use_cla"), _SHARED),
    **dict.fromkeys(("alibi", "use_alibi"), _ALIBI),
    **dict.fromkeys(("no_rope_layer_interval", "nope_layers", "nope_layer_interval"), _POSITIONS),
    "no_rope_layers": Switch(_POSITIONS.effect, (True,)),  # smollm3 lists 1 for a layer *with* the embedding
    **dict.fromkeys(("block_configs", "num_key_value_heads_per_layer", "attn_layer_indices"), _UNEQUAL),
    "layer_types": Switch(
        "some layers have another kind of attention", ("full_attention", "sliding_attention")
    ),
    "attention_chunk_size": Switch("attention stays within chunks"),
    **dict.fromkeys(("use_bidirectional_attention", "prefix_lm", "attn_uses_sequence_id"), _CAUSAL),
    "attn_type": Switch("keys and values are fewer than transformers makes", ("multihead_attention",)),
    "is_decoder": Switch("an encoder runs as a decoder with a cache"),
    "add_cross_attention": Switch("layers attend to another model's output as well"),
    "position_embedding_type": Switch(
        "scores depend on relative positions", ("absolute", "learned", "rope", "rotary")
    ),
    "use_mrpe": Switch("scores depend on relative positions"),
}

HARMLESS = frozenset(
    {
        # Numbers that the spec reads, or that tensors show.
        *(
            "num_attention_heads",
            "num_key_value_heads",
            "num_kv_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "head_dim",
            "d_kv",
        ),
        *("encoder_attention_heads", "decoder_attention_heads", "multi_query", "new_decoder_architecture"),
        *("encoder_num_attention_heads", "decoder_num_attention_heads", "pad_head_dim_to_multiple_of"),
        *("encoder_num_key_value_heads", "decoder_num_key_value_heads"),
        *("attention_bias", "attention_out_bias", "qkv_bias", "use_qkv_bias", "enable_bias", "bias"),
        # Positions: rotary embedding turns channels by an angle that is the same for all heads.
        *("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "rotary_pct"),
        *("relative_attention_max_distance", "relative_attention_num_buckets"),
        # Which positions a layer sees is in its mask.
        *("sliding_window", "use_sliding_window", "max_window_layers", "_sliding_window_pattern"),
        *("sliding_window_pattern", "local_attention", "alibi_bias_max"),
        # Training only, precision only, or what is returned.
        *("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "output_attentions"),
        *("reorder_and_upcast_attn", "attn_implementation", "_attn_implementation_autoset", "attn_impl"),
        *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "deterministic_flash_attn"),
        # Outside of attention.
        *("norm_epsilon", "norm_topk_prob", "norm_eps", "norm_type", "use_post_norm", "lm_head_bias"),
        *("shared_expert_intermediate_size", "shared_intermediate_size", "n_shared_experts"),
        *("moe_num_shared_experts", "moe_norm_min"),
        *("norm_bias", "feat_extract_norm", "feat_proj_layer_norm", "conv_pos_batch_norm"),
        *("do_stable_layer_norm", "adapter_attn_dim", "vision_use_head"),
        *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layer_norm_elementwise_affine"),
        *("final_logit_softcapping", "apply_layernorm", "apply_residual_connection_post_layernorm"),
        *("do_layer_norm_before", "_remove_final_layer_norm", "parallel_attn", "num_ln_in_parallel_attn"),
    }
)
"""Keys whose names speak of attention and whose values no conversion need mind."""


def attention_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config's keys, with those of its `attn_config` (MPT) beside them."""
    inner = config.get("attn_config")
    return {**config, **inner} if isinstance(inner, Mapping) else dict(config)


def switched_on(family: Family, config: Mapping[str, Any]) -> list[str]:
    """What a config turns on that the family does not run, each as `key = value: what it does`."""
    config = attention_keys(config)
    return [
        f"{key} = {config[key]!r}: {switch.effect}"
        for key, switch in SWITCHES.items()
        if key in config and key not in (*family.handles, family.norm_switch) and switch.is_on(config[key])
    ]
