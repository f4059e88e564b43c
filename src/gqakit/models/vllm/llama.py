"""vLLM's Llama with heads per layer: groups padded with query heads that nothing reads, the cache as small as planned.

It runs the families that are a Llama but for biases, windows and how weights are stored (Mistral, Qwen2, Phi-3), and Qwen3
with the normalisation of queries and keys added. Only vLLM imports this file. Run on a CPU (see docs/results/engines.md),
not tested on a GPU.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.layers.layernorm import RMSNorm  # pyright: ignore[reportMissingImports]
from vllm.model_executor.models.llama import (  # pyright: ignore[reportMissingImports]
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
)

from gqakit.models.vllm.padding import Weights, layer_config, padded


class NormalisedAttention(LlamaAttention):
    """Attention whose queries and keys are normalised, each head alike, before they are rotated."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.q_norm, self.k_norm = (RMSNorm(self.head_dim, eps=config.rms_norm_eps) for _ in range(2))

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """`[tokens, width]` from `[tokens, width]`."""
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split(
            [self.q_size, self.kv_size, self.kv_size], dim=-1
        )  # [tokens, heads · head_dim] each
        q, k = (
            norm(states.unflatten(-1, (-1, self.head_dim)).contiguous()).flatten(1)
            for norm, states in ((self.q_norm, q), (self.k_norm, k))
        )
        out, _ = self.o_proj(self.attn(*self.rotary_emb(positions, q, k), v))
        return out


class GroupedLlamaLayer(LlamaDecoderLayer):
    """A layer with heads of its own: vLLM reads them from the config, so each layer gets one."""

    def __init__(self, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
        config = vllm_config.model_config.hf_config
        own = layer_config(config, prefix)
        if config.model_type == "qwen2":
            own.qkv_bias = True
        if config.model_type == "qwen3":
            kwargs["attn_layer_type"] = NormalisedAttention
        super().__init__(vllm_config, prefix, config=own, **kwargs)  # pyright: ignore[reportCallIssue]


class GroupedLlamaForCausalLM(LlamaForCausalLM):
    """A grouped Llama, or a model that is one but for its attention; its weights are padded as they are loaded."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=GroupedLlamaLayer)  # pyright: ignore[reportCallIssue]

    def load_weights(self, weights: Weights) -> set[str]:
        """As vLLM's own, each attention tensor rearranged first."""
        return super().load_weights(padded(weights, self.config))
