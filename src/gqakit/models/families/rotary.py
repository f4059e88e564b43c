"""Decoders that share Llama's attention but for names, switches or how channels pair under rotary embedding."""

from __future__ import annotations

from dataclasses import replace

from gqakit.models.families.base import Family, Names, Stack, causal

GEMMA = Family("gemma", causal("Gemma"))
OLMO = Family("olmo", causal("Olmo"))
MIXTRAL = Family("mixtral", causal("Mixtral"))
QWEN2_MOE = Family("qwen2_moe", causal("Qwen2Moe"))
STARCODER2 = Family("starcoder2", causal("Starcoder2"))
GRANITE = Family(
    "granite",
    {"AutoModel": "GraniteModel", "AutoModelForCausalLM": "GraniteForCausalLM"},
    handles=("attention_multiplier",),  # its `scaling`, which the attention function is given
)
SMOLLM3 = Family(
    "smollm3",
    causal("SmolLM3"),
    # A map that acts inside frequency pairs is as valid in a layer without positions, so all layers count as rotary.
    handles=("no_rope_layers", "no_rope_layer_interval"),
)
PHI = Family(
    "phi",
    causal("Phi"),
    stacks=(Stack(names=Names(output="dense")),),
    rotary_share=0.5,
    key_norm="k_layernorm",
    query_norm="q_layernorm",
    norm_switch="qk_layernorm",
)
GPTJ = Family(
    "gptj",
    causal("GPTJ"),
    stacks=(
        Stack(
            home="h.{layer}.attn",
            names=Names(output="out_proj"),
            block="h.{layer}",
            num_layers="n_layer|num_hidden_layers",
            num_heads="n_head|num_attention_heads",
        ),
    ),
    prefixes=("transformer.", ""),
    hidden_size="n_embd|hidden_size",
    num_kv_heads=None,
    rotary_share=0.25,
    rotary_dim="rotary_dim",
    rotary_pairs="interleaved",
    beside=(
        "bias",
        "masked_bias",
    ),  # constants of the causal mask, which older releases of transformers saved
    watched=False,
)
CODEGEN = replace(
    GPTJ,
    model_type="codegen",
    classes={"AutoModel": "CodeGenModel", "AutoModelForCausalLM": "CodeGenForCausalLM"},
    stacks=(replace(GPTJ.stacks[0], names=Names.fused("qkv_proj", "out_proj")),),
    layout="quarters",
    beside=("causal_mask", *GPTJ.beside),
)
COHERE = Family(
    "cohere",
    {"AutoModel": "CohereModel", "AutoModelForCausalLM": "CohereForCausalLM"},
    rotary_pairs="interleaved",
    key_norm="k_norm",
    query_norm="q_norm",
    norm_switch="use_qk_norm",
)
