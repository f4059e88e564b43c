"""The attention of MPT, for any number of KV heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attending import Out, attend, from_fused


def forward(
    self: Any, hidden_states: Tensor, position_bias: Tensor, attention_mask: Tensor, **kwargs: Any
) -> Out:
    states = from_fused(self, self.Wqkv(hidden_states), self.head_dim)
    bias = position_bias[None, ..., -attention_mask.shape[-1] :]  # [1, heads, 1, S]
    kwargs |= {"attention_mask": ~attention_mask, "position_bias": bias}  # a mask of what is hidden
    out, weights = attend(self, states, self.softmax_scale, self.attn_dropout_p, kwargs)
    return self.out_proj(out), weights
