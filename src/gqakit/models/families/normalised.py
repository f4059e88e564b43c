"""Decoders that normalise queries and keys behind the position embedding."""

from __future__ import annotations

from gqakit.models.families.base import Family, causal

HUNYUAN = Family(
    "hunyuan_v1_dense",
    causal("HunYuanDenseV1"),
    key_norm="key_layernorm",
    query_norm="query_layernorm",
    norm_after_rope=True,
)
