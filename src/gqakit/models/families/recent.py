"""Decoders of 2024 and later: Llama's attention but for a normalisation, a window, sinks or how channels pair.

Some have mixtures of experts for feed-forward layers, which no conversion touches.
"""

from __future__ import annotations

from typing import Any

from gqakit.models.families.base import Family, causal, classes


def _language(model_type: str, prefix: str, **more: Any) -> Family:
    """A decoder that transformers has a language model of and no sequence classifier."""
    return Family(model_type, classes(prefix, "ForCausalLM"), **more)


_NORMS: Any = {"key_norm": "k_norm", "query_norm": "q_norm"}
_PAIRS: Any = {"rotary_pairs": "interleaved"}  # of neighbouring channels

MINISTRAL = Family("ministral", causal("Ministral"))
MINISTRAL3 = Family(
    "ministral3", causal("Ministral3")
)  # queries are scaled by position, which no map of keys minds
ARCEE = Family("arcee", causal("Arcee"))
SEED_OSS = Family("seed_oss", causal("SeedOss"))
CWM = _language("cwm", "Cwm")
JAIS2 = _language("jais2", "Jais2")
HYPERCLOVAX = _language("hyperclovax", "HyperCLOVAX", handles=("attention_multiplier",))
VAULTGEMMA = _language(
    "vaultgemma", "VaultGemma", handles=("attn_logit_softcapping", "query_pre_attn_scalar")
)
NEMOTRON = Family("nemotron", causal("Nemotron"), rotary_share=0.5)
HELIUM = Family("helium", causal("Helium"), **_PAIRS)
ERNIE4_5 = _language("ernie4_5", "Ernie4_5", **_PAIRS)
COHERE2 = _language(
    "cohere2", "Cohere2", **_PAIRS
)  # its layers without a window have no positions; see SmolLM3
GLM = Family("glm", causal("Glm"), rotary_share=0.5, **_PAIRS)
GLM4 = Family("glm4", causal("Glm4"), rotary_share=0.5, **_PAIRS)
OLMO3 = Family("olmo3", causal("Olmo3"), **_NORMS)
APERTUS = _language("apertus", "Apertus", **_NORMS)
EXAONE4 = Family("exaone4", causal("Exaone4"), **_NORMS)

QWEN3_MOE = Family("qwen3_moe", causal("Qwen3Moe"), **_NORMS)
OLMOE = _language("olmoe", "Olmoe", **_NORMS)
FLEX_OLMO = _language("flex_olmo", "FlexOlmo", **_NORMS)
DOTS1 = _language("dots1", "Dots1", **_NORMS)
GLM4_MOE = _language("glm4_moe", "Glm4Moe", rotary_share=0.5, norm_switch="use_qk_norm", **_NORMS)
MINIMAX_M2 = _language("minimax_m2", "MiniMaxM2", rotary_dim="rotary_dim", partly_rotary=True, **_NORMS)
PHIMOE = Family("phimoe", causal("Phimoe"))
ERNIE4_5_MOE = _language("ernie4_5_moe", "Ernie4_5_Moe", **_PAIRS)
SOLAR_OPEN = _language("solar_open", "SolarOpen", partly_rotary=True)
GRANITEMOE = _language("granitemoe", "GraniteMoe", handles=("attention_multiplier",))
GRANITEMOESHARED = _language("granitemoeshared", "GraniteMoeShared", handles=("attention_multiplier",))
GPT_OSS = Family("gpt_oss", causal("GptOss"), sinks="sinks")

RECENT = (
    *(
        MINISTRAL,
        MINISTRAL3,
        ARCEE,
        SEED_OSS,
        CWM,
        JAIS2,
        HYPERCLOVAX,
        VAULTGEMMA,
        NEMOTRON,
        HELIUM,
        ERNIE4_5,
        COHERE2,
    ),
    *(GLM, GLM4, OLMO3, APERTUS, EXAONE4, QWEN3_MOE, OLMOE, FLEX_OLMO, DOTS1, GLM4_MOE, MINIMAX_M2, PHIMOE),
    *(ERNIE4_5_MOE, SOLAR_OPEN, GRANITEMOE, GRANITEMOESHARED, GPT_OSS),
)
