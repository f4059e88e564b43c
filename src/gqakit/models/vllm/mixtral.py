"""vLLM's Mixtral with heads per layer, as its Llama in llama.py. Only vLLM imports this file."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from vllm.model_executor.models import mixtral  # pyright: ignore[reportMissingImports]

from gqakit.models.vllm.padding import Weights, layer_config, padded


class GroupedMixtralLayer(mixtral.MixtralDecoderLayer):
    """A layer with heads of its own: vLLM reads them from the config, so each layer gets one."""

    def __init__(self, config: Any, *args: Any, prefix: str, **kwargs: Any) -> None:
        super().__init__(layer_config(config, prefix), *args, prefix=prefix, **kwargs)


class GroupedMixtralForCausalLM(mixtral.MixtralForCausalLM):
    """A grouped Mixtral; its weights are padded as they are loaded."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        # Unlike Llama's, the model takes no class for its layers.
        with patch.object(mixtral, "MixtralDecoderLayer", GroupedMixtralLayer):
            super().__init__(vllm_config=vllm_config, prefix=prefix)

    def load_weights(self, weights: Weights) -> set[str]:
        """As vLLM's own, each attention tensor rearranged first."""
        return super().load_weights(padded(weights, self.config))
