"""The attention of GPT-NeoX, for any number of KV heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attending import Out, attend, from_fused, rotated
from ..packing import Mask


def forward(self: Any, hidden_states: Tensor, attention_mask: Mask = None, **kwargs: Any) -> Out:
    states = from_fused(self, self.query_key_value(hidden_states), self.head_size)
    states, kwargs["attention_mask"] = rotated(self, states, kwargs), attention_mask
    out, weights = attend(self, states, self.scaling, self.attention_dropout, kwargs)
    return self.dense(out), weights
