"""The attention of GPT-2 and GPTBigCode, for any number of KV heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from ..attending import Out, attend, from_fused


def forward(self: Any, hidden_states: Tensor, past_key_values: Any = None, **kwargs: Any) -> Out:
    states, cache = from_fused(self, self.c_attn(hidden_states), self.head_dim), past_key_values
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    kwargs["past_key_values"] = cache
    rate = getattr(self.attn_dropout, "p", self.attn_dropout)  # a number in GPTBigCode
    out, weights = attend(self, states, self.scaling, rate, kwargs)
    return self.resid_dropout(self.c_proj(out)), weights
