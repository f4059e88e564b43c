"""The families that run grouped, as data: `model_type` of the source and the prefix of its class names."""

from __future__ import annotations

CLASS_PREFIX_OF_FAMILY: dict[str, str] = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}
