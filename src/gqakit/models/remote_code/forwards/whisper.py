"""The attention of Whisper and Moonshine: decoders with attention to what was heard, for any number of KV heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from ..attending import Out, attend, by_heads, rotated


def forward(self: Any, hidden_states: Tensor, key_value_states: Tensor | None = None, **kwargs: Any) -> Out:
    cross, cache, known = key_value_states is not None, kwargs.pop("past_key_values", None), False
    if isinstance(cache, EncoderDecoderCache):
        known = bool(cross and cache.is_updated.get(self.layer_idx))
        if cross:
            cache.is_updated[self.layer_idx] = True
        cache = cache.cross_attention_cache if cross else cache.self_attention_cache
    out_proj = getattr(self, "out_proj", None)
    first = 1.0 if out_proj is None else self.scaling  # Moonshine scales scores
    query = by_heads(self.q_proj(hidden_states) * first, self.head_dim)
    if known and cache is not None:
        key, value = cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        cache = None
    else:
        other = hidden_states if key_value_states is None else key_value_states
        key, value = by_heads(self.k_proj(other), self.head_dim), by_heads(self.v_proj(other), self.head_dim)
    states, kwargs["past_key_values"] = (query, key, value), cache
    if kwargs.get("position_embeddings") is not None:  # Moonshine's
        states = rotated(self, states, kwargs)
    rate = self.dropout if hasattr(self, "dropout") else self.attention_dropout
    out, weights = attend(self, states, self.scaling / first, rate, kwargs)
    return (out_proj or self.o_proj)(out), weights
