"""GPT-2 and decoders of its time: fused projections, learned or linear positions, multi-head only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gqakit.models.families.base import Family, Names, Stack, causal


def _fused(attention: str, fused: str, output: str, num_layers: str, num_heads: str) -> Stack:
    """Blocks `h.0`, `h.1`, … with one projection for q, k and v."""
    return Stack(
        home=f"h.{{layer}}.{attention}",
        names=Names.fused(fused, output),
        block="h.{layer}",
        num_layers=num_layers,
        num_heads=num_heads,
    )


_MASKS = ("bias", "masked_bias")  # constants of the causal mask, which older releases of transformers saved

GPT2 = Family(
    "gpt2",
    {
        "AutoModel": "GPT2Model",
        "AutoModelForCausalLM": "GPT2LMHeadModel",
        "AutoModelForSequenceClassification": "GPT2ForSequenceClassification",
    },
    stacks=(_fused("attn", "c_attn", "c_proj", "n_layer", "n_head"),),
    prefixes=("transformer.", ""),
    hidden_size="n_embd",
    num_kv_heads=None,
    layout="blocks",
    transposed=True,
    positions="none",
    beside=_MASKS,
    handles=("scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
)

GPT_NEOX = Family(
    "gpt_neox",
    causal("GPTNeoX"),
    stacks=(Stack(home="layers.{layer}.attention", names=Names.fused("query_key_value", "dense")),),
    prefixes=("gpt_neox.", ""),
    num_kv_heads=None,
    layout="interleaved",
    rotary_share=0.25,
    beside=_MASKS,
)


def _bigcode_kv_heads(config: Mapping[str, Any]) -> int | None:
    return 1 if config.get("multi_query", True) else None


GPT_BIGCODE = Family(
    "gpt_bigcode",
    causal("GPTBigCode"),
    stacks=(_fused("attn", "c_attn", "c_proj", "n_layer", "n_head"),),
    prefixes=("transformer.", ""),
    hidden_size="n_embd",
    num_kv_heads=None,
    count_kv_heads=_bigcode_kv_heads,
    layout="interleaved",  # which with one KV head is the same as blocks
    positions="none",
    beside=_MASKS,
    handles=("scale_attn_weights",),
)

MPT = Family(
    "mpt",
    causal("Mpt"),
    stacks=(
        Stack(
            home="blocks.{layer}.attn",
            names=Names.fused("Wqkv", "out_proj"),
            block="blocks.{layer}",
            num_layers="n_layers",
            num_heads="n_heads",
        ),
    ),
    prefixes=("transformer.", ""),
    hidden_size="d_model",
    num_kv_heads=None,
    layout="blocks",
    positions="bias",
    handles=("alibi", "softmax_scale"),
    watched=False,
)

OPT = Family(
    "opt",
    causal("OPT"),
    stacks=(
        Stack(
            home="decoder.layers.{layer}.self_attn",
            names=Names(output="out_proj"),
            block="decoder.layers.{layer}",
        ),
    ),
    prefixes=("model.", ""),
    num_kv_heads=None,
    positions="none",
)

BLOOM = Family(
    "bloom",
    causal("Bloom"),
    stacks=(
        _fused(
            "self_attention",
            "query_key_value",
            "dense",
            "n_layer|num_hidden_layers",
            "n_head|num_attention_heads",
        ),
    ),
    prefixes=("transformer.", ""),
    hidden_size="hidden_size|n_embed",
    num_kv_heads=None,
    layout="interleaved",
    positions="bias",
    watched=False,
)


def _falcon_kv_heads(config: Mapping[str, Any]) -> int | None:
    if config.get("new_decoder_architecture"):
        return config.get("num_kv_heads") or config.get("num_attention_heads")
    return 1 if config.get("multi_query", True) else None


def _falcon_positions(config: Mapping[str, Any]) -> Literal["rotary", "bias"]:
    return "bias" if config.get("alibi") else "rotary"


FALCON = Family(
    "falcon",
    causal("Falcon"),
    stacks=(
        _fused(
            "self_attention",
            "query_key_value",
            "dense",
            "num_hidden_layers|n_layer",
            "num_attention_heads|n_head",
        ),
    ),
    prefixes=("transformer.", ""),
    num_kv_heads=None,
    count_kv_heads=_falcon_kv_heads,
    layout="interleaved",
    positions=_falcon_positions,
    handles=("alibi",),
    watched=False,
)
