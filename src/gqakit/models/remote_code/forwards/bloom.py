"""The attention of BLOOM, for any number of KV heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import dropout

from ..attending import Out, attend, from_fused


def forward(self: Any, hidden_states: Tensor, residual: Tensor, alibi: Tensor, **kwargs: Any) -> Out:
    states = from_fused(self, self.query_key_value(hidden_states), self.head_dim)
    bias = alibi.reshape(hidden_states.shape[0], self.num_heads, -1, alibi.shape[-1])  # [B, heads, 1, S]
    # Where no mask is given, the config says whether later positions are hidden.
    kwargs |= {"position_bias": bias, "is_causal": getattr(self.config, "is_causal", True)}
    out, weights = attend(self, states, self.inv_norm_factor, self.attention_dropout.p, kwargs)
    return residual + dropout(self.dense(out), p=self.hidden_dropout, training=self.training), weights
