"""The attention of StableLM, for any number of KV heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..attending import Out, attend, from_projections, rotated


def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Out:
    query, key, value = from_projections(self, hidden_states)
    if self.qk_layernorm:
        query, key = self.q_layernorm(query), self.k_layernorm(key)
    width = self.rotary_ndims  # the first channels of a head rotate
    turned = rotated(self, (query[..., :width], key[..., :width], value), kwargs)
    query = torch.cat([turned[0], query[..., width:]], dim=-1)
    key = torch.cat([turned[1], key[..., width:]], dim=-1)
    out, weights = attend(self, (query, key, value), self.scaling, self.attention_dropout, kwargs)
    return self.o_proj(out), weights
