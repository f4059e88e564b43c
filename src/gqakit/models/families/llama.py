"""Llama and the families that share its attention."""

from __future__ import annotations

from gqakit.models.families.base import Family, Names, Stack, causal

LLAMA = Family("llama", causal("Llama"))
MISTRAL = Family("mistral", causal("Mistral"))
QWEN2 = Family("qwen2", causal("Qwen2"))
QWEN3 = Family("qwen3", causal("Qwen3"), key_norm="k_norm", query_norm="q_norm")
PHI3 = Family(
    "phi3",
    causal("Phi3"),
    stacks=(Stack(names=Names.fused("qkv_proj", "o_proj")),),
    layout="blocks",
    partly_rotary=True,
)
_GEMMA = ("attn_logit_softcapping", "query_pre_attn_scalar")
# Transformers' Gemma 2 makes a causal mask whatever `use_bidirectional_attention` says, and asks for none.
GEMMA2 = Family("gemma2", causal("Gemma2"), handles=_GEMMA)
GEMMA3 = Family(
    "gemma3_text",
    {"AutoModel": "Gemma3TextModel", "AutoModelForCausalLM": "Gemma3ForCausalLM"},
    key_norm="k_norm",
    query_norm="q_norm",
    handles=(*_GEMMA, "use_bidirectional_attention"),
)
OLMO2 = Family("olmo2", causal("Olmo2"), key_norm="k_norm", query_norm="q_norm")
STABLELM = Family(
    "stablelm",
    causal("StableLm"),
    rotary_share=0.25,
    key_norm="k_layernorm",
    query_norm="q_layernorm",
    norm_switch="qk_layernorm",
)
