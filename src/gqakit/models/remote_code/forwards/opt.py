"""The attention of OPT, for any number of KV heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attending import Out, attend, from_projections


def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Out:
    query, key, value = from_projections(self, hidden_states)
    out, weights = attend(self, (query * self.scaling, key, value), 1.0, self.dropout, kwargs)
    return self.out_proj(out), weights
