"""The attention of MPNet, for any number of KV heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attending import Out, attend, by_heads
from ..packing import Mask


def forward(
    self: Any, hidden_states: Tensor, mask: Mask, bias: Tensor, output_attentions: bool = False, **kwargs: Any
) -> Out | tuple[Tensor]:
    dim = self.attention_head_size
    query, key, value = (by_heads(project(hidden_states), dim) for project in (self.q, self.k, self.v))
    how = {"attention_mask": mask, "position_bias": bias, "is_causal": False}
    how["output_attentions"] = output_attentions
    out, weights = attend(self, (query, key, value), dim**-0.5, self.dropout.p, how)
    return (self.o(out), weights) if output_attentions else (self.o(out),)
