"""What the forward passes of families share: heads out of projections, rotary embedding, cache and attention function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import grouped_attention_forward

States = tuple[Tensor, Tensor, Tensor]  # queries, keys and values, [B, heads, T, d] each
Out = tuple[Tensor, Any]  # [B, T, hidden size], and attention weights if any


def by_heads(states: Tensor, dim: int) -> Tensor:
    """`[B, T, heads · d]` to `[B, heads, T, d]`."""
    return states.unflatten(-1, (-1, dim)).transpose(1, 2)


def from_projections(self: Any, hidden_states: Tensor) -> States:
    """From separate projections `q_proj`, `k_proj` and `v_proj`."""
    query, key, value = (project(hidden_states) for project in (self.q_proj, self.k_proj, self.v_proj))
    return by_heads(query, self.head_dim), by_heads(key, self.head_dim), by_heads(value, self.head_dim)


def from_fused(self: Any, states: Tensor, dim: int) -> States:
    """From the output of a fused projection, `[B, T, heads of q, k and v · d]`."""
    maps = self.head_maps
    if maps is not None:
        sizes = (len(maps.key_head_of_query), maps.num_key_heads, maps.num_value_heads)
        query, key, value = states.split([size * dim for size in sizes], dim=-1)
        return by_heads(query, dim), by_heads(key, dim), by_heads(value, dim)
    # A stock layer: for each KV head in turn its queries, its key, its value.
    num_heads = self.config.num_attention_heads
    kv_heads = (states.shape[-1] // dim - num_heads) // 2
    turns = states.unflatten(-1, (kv_heads, num_heads // kv_heads + 2, dim))  # [B, T, KV heads, turn, d]
    query = turns[..., :-2, :].flatten(2, 3)
    return query.transpose(1, 2), turns[..., -2, :].transpose(1, 2), turns[..., -1, :].transpose(1, 2)


def attend(self: Any, states: States, scaling: float, rate: float, kwargs: dict[str, Any]) -> Out:
    """Update the cache if there is one, then the model's attention function; `[B, T, heads · d]`.

    `rate` is that of dropout in training; `kwargs` are the forward's, with cache and mask among them.
    """
    query, key, value = states
    mask, cache = kwargs.pop("attention_mask", None), kwargs.pop("past_key_values", None)
    cache = kwargs.pop("layer_past", cache)  # what some families call it
    if cache is not None:
        key, value = cache.update(key, value, self.layer_idx)
    # Of the stock functions not all add a position bias.
    function: Callable[..., Any] = grouped_attention_forward
    if self.config._attn_implementation not in ("eager", "sdpa"):
        function = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
    kwargs["dropout"] = rate if self.training else 0.0
    out, weights = function(self, query, key, value, mask, scaling=scaling, **kwargs)
    return out.flatten(2), weights


def rotated(self: Any, states: States, kwargs: dict[str, Any]) -> States:
    """Queries and keys after RoPE, by the function of the module of transformers that defines the layer."""
    query, key, value = states
    rotate = sys.modules[type(self).__module__].apply_rotary_pos_emb
    return *rotate(query, key, *kwargs.pop("position_embeddings")), value
