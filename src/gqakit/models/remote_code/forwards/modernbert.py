"""The attention of ModernBERT, for any number of KV heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attending import Out, attend, from_fused, rotated


def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Out:
    states = rotated(self, from_fused(self, self.Wqkv(hidden_states), self.head_dim), kwargs)
    out, weights = attend(self, states, self.head_dim**-0.5, self.attention_dropout, kwargs)
    return self.out_drop(self.Wo(out)), weights
