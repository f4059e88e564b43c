"""The attention of GPT-J and CodeGen, for any number of KV heads."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from ..attending import Out, States, attend, from_fused, from_projections


def forward(self: Any, hidden_states: Tensor, position_ids: Any = None, **kwargs: Any) -> Out:
    project = from_projections if hasattr(self, "q_proj") else _quarters
    (*states, value), width = project(self, hidden_states), self.rotary_dim or self.head_dim
    # [B or 1, T, width / 2] each
    turns = self.embed_positions.to(hidden_states.device)[position_ids].to(states[0].dtype).chunk(2, dim=-1)
    rotate = sys.modules[type(self).__module__].apply_rotary_pos_emb  # of [B, T, heads, width]
    for i in range(2):  # of queries and of keys the first channels of a head rotate
        first = rotate(states[i][..., :width].transpose(1, 2), *turns).transpose(1, 2)
        states[i] = torch.cat([first, states[i][..., width:]], dim=-1)
    how = {n: v for n, v in kwargs.items() if n in ("layer_past", "attention_mask", "output_attentions")}
    how["is_causal"] = getattr(self.config, "is_causal", True)  # what no mask means
    out, weights = attend(self, (states[0], states[1], value), self.head_dim**-0.5, self.attn_dropout.p, how)
    return self.resid_dropout(self.out_proj(out)), weights


def _quarters(self: Any, hidden_states: Tensor) -> States:
    """From CodeGen's fused projection: of a stock layer four parts, each of queries, values and keys."""
    states = self.qkv_proj(hidden_states)
    if self.head_maps is not None:
        return from_fused(self, states, self.head_dim)
    parts = states.unflatten(-1, (4, 3, -1, self.head_dim))  # [B, T, quarters, q v k, heads of a quarter, d]
    query, value, key = (part.flatten(2, 3).transpose(1, 2) for part in parts.unbind(3))
    return query, key, value
