"""The entry point `vllm.general_plugins`: grouped Llama checkpoints run on vLLM's own layers. Imports vLLM lazily."""

from __future__ import annotations

from importlib.util import find_spec


def register() -> None:
    """Make vLLM know grouped configs, and grouped Llama models by their architecture. Nothing where vLLM is not."""
    if find_spec("vllm") is None:
        return
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]

    from gqakit.models.registration import register as register_configs

    register_configs("gqakit_llama")
    ModelRegistry.register_model("GqakitLlamaForCausalLM", "gqakit.models.vllm.llama:GroupedLlamaForCausalLM")
