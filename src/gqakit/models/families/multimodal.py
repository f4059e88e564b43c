"""Text models that see: what they attend to images with passes through untouched, their text model is converted."""

from __future__ import annotations

from dataclasses import replace

from gqakit.models.families.base import Family
from gqakit.models.families.llama import GEMMA2, GEMMA3, LLAMA, MISTRAL, QWEN2, QWEN3
from gqakit.models.families.rotary import COHERE, GEMMA, GRANITE, MIXTRAL


def _sees(model_type: str, prefix: str, *texts: Family, root: str = "language_model") -> Family:
    """A family around text models; tensor names as transformers 5 has them, then as releases before it."""
    return replace(
        texts[0],
        model_type=model_type,
        classes={
            "AutoModel": f"{prefix}Model",
            "AutoModelForImageTextToText": f"{prefix}ForConditionalGeneration",
        },
        prefixes=(f"model.{root}.", f"{root}.model.", f"{root}.", "model."),
        root=root,
        section="text_config",
        texts={text.model_type: text for text in texts},
    )


def _within(text: Family, model_type: str) -> Family:
    """A text model that has a model type of its own inside of a multimodal one."""
    return replace(text, model_type=model_type)


_ANY = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, MIXTRAL, COHERE, GRANITE)

# What precedes the answer sees all of itself: the mask says so.
_PREFIX = ("use_bidirectional_attention",)
_PREFIXED = (replace(text, handles=(*text.handles, *_PREFIX)) for text in (GEMMA, GEMMA2))

MULTIMODAL = (
    _sees("llava", "Llava", *_ANY),
    _sees("llava_next", "LlavaNext", *_ANY),
    _sees("paligemma", "PaliGemma", *_PREFIXED),
    _sees("idefics3", "Idefics3", LLAMA, MISTRAL, root="text_model"),
    _sees("smolvlm", "SmolVLM", LLAMA, root="text_model"),
    _sees("mistral3", "Mistral3", MISTRAL),
    _sees("gemma3", "Gemma3", GEMMA3),
    _sees("qwen2_vl", "Qwen2VL", _within(QWEN2, "qwen2_vl_text")),
    _sees("qwen2_5_vl", "Qwen2_5_VL", _within(QWEN2, "qwen2_5_vl_text")),
    _sees("qwen3_vl", "Qwen3VL", _within(QWEN3, "qwen3_vl_text")),
)
