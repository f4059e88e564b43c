"""The entry point `vllm.general_plugins`: grouped checkpoints run on vLLM's own layers. Imports vLLM lazily."""

from __future__ import annotations

from importlib.util import find_spec

_LLAMA = "gqakit.models.vllm.llama:GroupedLlamaForCausalLM"
MODELS = {
    "llama": ("GqakitLlamaForCausalLM", _LLAMA),
    "mistral": ("GqakitMistralForCausalLM", _LLAMA),
    "qwen2": ("GqakitQwen2ForCausalLM", _LLAMA),
    "qwen3": ("GqakitQwen3ForCausalLM", _LLAMA),
    "phi3": ("GqakitPhi3ForCausalLM", _LLAMA),
    "mixtral": ("GqakitMixtralForCausalLM", "gqakit.models.vllm.mixtral:GroupedMixtralForCausalLM"),
}
"""By family: the architecture in its grouped config, and the class that runs it."""


def register() -> None:
    """Make vLLM know grouped configs, and the models above by their architecture. Nothing where vLLM is not."""
    if find_spec("vllm") is None:
        return
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]

    from gqakit.models.registration import register as register_configs

    for family, (architecture, model) in MODELS.items():
        register_configs(f"gqakit_{family}")
        ModelRegistry.register_model(architecture, model)
