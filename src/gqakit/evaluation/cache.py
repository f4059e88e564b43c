"""The KV cache measured: run a model and count the bytes it keeps."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def measure_cache(model: PreTrainedModel, tokens: int = 16) -> float:
    """Bytes per token that a real cache holds after a forward pass over `tokens` tokens of one sequence.

    Counts the storage of every layer's keys and values, so a cache that repeats heads shows it.
    """
    device = next(model.parameters()).device
    ids = torch.arange(tokens, device=device)[None] % model.config.vocab_size
    with torch.inference_mode():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    total = sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values))
    return total / tokens
