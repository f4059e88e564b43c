"""The attention of Falcon, for any number of KV heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attending import Out, attend, from_fused, rotated
from ..packing import Mask


def forward(
    self: Any, hidden_states: Tensor, alibi: Tensor | None, attention_mask: Mask, **kwargs: Any
) -> Out:
    states = from_fused(self, self.query_key_value(hidden_states), self.head_dim)
    if alibi is None:
        states = rotated(self, states, kwargs)
    # With linear position biases the mask already holds them.
    rate, kwargs["attention_mask"] = 0.0 if alibi is None else self.attention_dropout.p, attention_mask
    out, weights = attend(self, states, self.inv_norm_factor, rate, kwargs)
    return self.dense(out), weights
