"""vLLM's Llama with heads per layer: groups padded with query heads that nothing reads, the cache as small as planned.

Only vLLM imports this file. Run on a CPU (see docs/results/engines.md), not tested on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from vllm.model_executor.models.llama import (  # pyright: ignore[reportMissingImports]
    LlamaDecoderLayer,
    LlamaForCausalLM,
)

from gqakit.models.head_layout import Arrangement, pad_layer

_PROJECTION = re.compile(r"layers\.(\d+)\.self_attn\.([qkvo])_proj\.(weight|bias)$")


def _arrangements(config: Any) -> list[Arrangement]:
    return [pad_layer(heads) for heads in config.layer_heads()]


class GroupedLlamaLayer(LlamaDecoderLayer):
    """A layer with heads of its own: vLLM reads them from the config, so each layer gets one."""

    def __init__(self, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
        config = vllm_config.model_config.hf_config
        arrangement = _arrangements(config)[int(prefix.rpartition(".")[2])]
        own = SimpleNamespace(
            **{
                **config.to_dict(),
                "num_attention_heads": arrangement.num_heads,
                "num_key_value_heads": arrangement.num_kv_heads,
                "head_dim": config.head_dim or config.hidden_size // config.num_attention_heads,
            }
        )
        super().__init__(vllm_config, prefix, config=own, **kwargs)  # pyright: ignore[reportCallIssue]


class GroupedLlamaForCausalLM(LlamaForCausalLM):
    """A grouped Llama; its weights are padded as they are loaded."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=GroupedLlamaLayer)  # pyright: ignore[reportCallIssue]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """As vLLM's own, each attention tensor rearranged first."""
        arrangements = _arrangements(self.config)
        return super().load_weights((name, _padded(name, weight, arrangements)) for name, weight in weights)


def _padded(name: str, weight: torch.Tensor, arrangements: list[Arrangement]) -> torch.Tensor:
    found = _PROJECTION.search(name)
    if found is None or (found[2] == "o" and found[3] == "bias"):
        return weight
    arrangement = arrangements[int(found[1])]
    if found[2] == "o":
        columns = weight.unflatten(1, (len(set(arrangement.query)), -1))[:, list(arrangement.query)]
        return (columns * torch.tensor(arrangement.live, dtype=columns.dtype)[None, :, None]).flatten(1)
    heads = {"q": arrangement.query, "k": arrangement.key, "v": arrangement.value}[found[2]]
    return weight.unflatten(0, (max(heads) + 1, -1))[list(heads)].flatten(0, 1)
