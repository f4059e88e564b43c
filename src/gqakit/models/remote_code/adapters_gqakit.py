"""Forward passes for the attention modules whose own code takes the number of KV heads for granted.

Most families shape keys and values by the width of their projections, and need nothing here. These do not: they
have a fused projection, a fixed view, or attention of their own that asks no attention function. Each forward
computes what the family's own does, for any number of heads. This file is copied into every grouped checkpoint.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_gqakit import grouped_attention_forward
from .heads_gqakit import LayerHeads


def adapt(attention: Any, model_type: str, config: Any, heads: LayerHeads | None = None) -> None:
    """Make an attention module run any number of KV heads, where its own code does not.

    Args:
        attention: the module that calls the attention function.
        model_type: the family's.
        config: the model's.
        heads: the head maps; None leaves a stock layer as it is but for going through the attention function.
    """
    if model_type == "phi3" and heads is not None:
        attention.num_key_value_heads = heads.num_key_heads  # where its forward cuts the fused projection
    attention.head_maps = heads
    forward = _FORWARDS.get(model_type)
    if forward is not None:
        attention.config = config
        attention.forward = MethodType(forward, attention)


def prepare(model_type: str) -> None:
    """What must be known before transformers builds a model: Falcon looks its attention class up by function."""
    if model_type == "falcon":
        falcon = importlib.import_module("transformers.models.falcon.modeling_falcon")
        classes = getattr(falcon, "FALCON_ATTENTION_CLASSES", {})
        if "eager" in classes:
            classes.setdefault("gqakit", classes["eager"])


def _heads(states: Tensor, dim: int) -> Tensor:
    """`[B, T, heads * d]` to `[B, heads, T, d]`."""
    return states.unflatten(-1, (-1, dim)).transpose(1, 2)


def _fused(self: Any, states: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The output of a fused projection as queries, keys and values, `[B, heads, T, d]` each."""
    maps = self.head_maps
    if maps is not None:
        sizes = (len(maps.key_head_of_query), maps.num_key_heads, maps.num_value_heads)
        query, key, value = states.split([size * dim for size in sizes], dim=-1)
        return _heads(query, dim), _heads(key, dim), _heads(value, dim)
    num_heads = self.config.num_attention_heads  # a stock layer: in turns for each KV head
    kv_heads = (states.shape[-1] // dim - num_heads) // 2
    turns = states.unflatten(-1, (kv_heads, num_heads // kv_heads + 2, dim))
    query = turns[..., :-2, :].flatten(2, 3)
    return query.transpose(1, 2), turns[..., -2, :].transpose(1, 2), turns[..., -1, :].transpose(1, 2)


def _attend(
    self: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, Any]:
    """The model's attention function; `[B, T, heads * d]`."""
    function: Callable[..., Any] = (
        grouped_attention_forward  # of the stock functions not all add a position bias
    )
    if self.config._attn_implementation not in ("eager", "sdpa"):
        function = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
    out, weights = function(self, query, key, value, mask, scaling=scaling, **kwargs)
    return out.flatten(2), weights


def _dropout(self: Any, rate: float) -> float:
    return rate if self.training else 0.0


def _opt(
    self: Any,
    hidden_states: Tensor,
    past_key_values: Any = None,
    attention_mask: Tensor | None = None,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    query = _heads(self.q_proj(hidden_states) * self.scaling, self.head_dim)
    key = _heads(self.k_proj(hidden_states), self.head_dim)
    value = _heads(self.v_proj(hidden_states), self.head_dim)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    rate = _dropout(self, self.dropout)
    out, weights = _attend(self, query, key, value, attention_mask, 1.0, dropout=rate, **kwargs)
    return self.out_proj(out), weights


def _whisper(
    self: Any,
    hidden_states: Tensor,
    key_value_states: Tensor | None = None,
    past_key_values: Any = None,
    attention_mask: Tensor | None = None,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    query = _heads(self.q_proj(hidden_states) * self.scaling, self.head_dim)
    cross, cache, known = key_value_states is not None, past_key_values, False
    if isinstance(cache, EncoderDecoderCache):
        known = bool(cross and cache.is_updated.get(self.layer_idx))
        if cross:
            cache.is_updated[self.layer_idx] = True
        cache = cache.cross_attention_cache if cross else cache.self_attention_cache
    if known and cache is not None:
        key, value = cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
    else:
        states = hidden_states if key_value_states is None else key_value_states
        key, value = (_heads(project(states), self.head_dim) for project in (self.k_proj, self.v_proj))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
    rate = _dropout(self, self.dropout)
    out, weights = _attend(self, query, key, value, attention_mask, 1.0, dropout=rate, **kwargs)
    return self.out_proj(out), weights


def _gpt2(
    self: Any,
    hidden_states: Tensor,
    past_key_values: Any = None,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    output_attentions: bool | None = False,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    query, key, value = _fused(self, self.c_attn(hidden_states), self.head_dim)
    if isinstance(past_key_values, EncoderDecoderCache):
        past_key_values = past_key_values.self_attention_cache
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    rate = _dropout(self, self.attn_dropout.p)
    out, weights = _attend(self, query, key, value, attention_mask, self.scaling, dropout=rate, **kwargs)
    return self.resid_dropout(self.c_proj(out)), weights


def _gpt_neox(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None,
    layer_past: Any = None,
    position_embeddings: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    query, key, value = _fused(self, self.query_key_value(hidden_states), self.head_size)
    query, key = _own_module(self).apply_rotary_pos_emb(query, key, *position_embeddings)
    if layer_past is not None:
        key, value = layer_past.update(key, value, self.layer_idx)
    rate = _dropout(self, self.attention_dropout)
    out, weights = _attend(self, query, key, value, attention_mask, self.scaling, dropout=rate, **kwargs)
    return self.dense(out), weights


def _bloom(
    self: Any,
    hidden_states: Tensor,
    residual: Tensor,
    alibi: Tensor,
    attention_mask: Tensor | None,
    layer_past: Any = None,
    use_cache: bool = False,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    query, key, value = _fused(self, self.query_key_value(hidden_states), self.head_dim)
    if layer_past is not None:
        key, value = layer_past.update(key, value, self.layer_idx)
    bias = alibi.reshape(query.shape[0], self.num_heads, -1, alibi.shape[-1])
    rate = _dropout(self, self.attention_dropout.p)
    out, weights = _attend(
        self, query, key, value, attention_mask, self.inv_norm_factor, dropout=rate, position_bias=bias
    )
    out = residual + dropout(self.dense(out), p=self.hidden_dropout, training=self.training)
    return out, weights


def _falcon(
    self: Any,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    layer_past: Any = None,
    use_cache: bool = False,
    output_attentions: bool = False,
    position_embeddings: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    query, key, value = _fused(self, self.query_key_value(hidden_states), self.head_dim)
    if alibi is None:
        query, key = _own_module(self).apply_rotary_pos_emb(query, key, *position_embeddings)
    if layer_past is not None:
        key, value = layer_past.update(key, value, self.layer_idx)
    # With linear position biases the mask already holds them.
    rate = 0.0 if alibi is None else _dropout(self, self.attention_dropout.p)
    out, weights = _attend(self, query, key, value, attention_mask, self.inv_norm_factor, dropout=rate)
    return self.dense(out), weights


def _mpnet(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, ...]:
    dim = self.attention_head_size
    query, key, value = (_heads(project(hidden_states), dim) for project in (self.q, self.k, self.v))
    how = {"dropout": _dropout(self, self.dropout.p), "is_causal": False, "position_bias": position_bias}
    out, weights = _attend(self, query, key, value, attention_mask, dim**-0.5, **how)
    return (self.o(out), weights) if output_attentions else (self.o(out),)


def _stablelm(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    output_attentions: bool = False,
    use_cache: bool = False,
    position_embeddings: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    query = _heads(self.q_proj(hidden_states), self.head_dim)
    key = _heads(self.k_proj(hidden_states), self.head_dim)
    value = _heads(self.v_proj(hidden_states), self.head_dim)
    width = self.rotary_ndims
    turned = _own_module(self).apply_rotary_pos_emb(
        query[..., :width], key[..., :width], *position_embeddings
    )
    query = torch.cat([turned[0], query[..., width:]], dim=-1)
    key = torch.cat([turned[1], key[..., width:]], dim=-1)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    rate = _dropout(self, self.attention_dropout)
    out, weights = _attend(self, query, key, value, attention_mask, self.scaling, dropout=rate, **kwargs)
    return self.o_proj(out), weights


def _own_module(self: Any) -> Any:
    """The module of transformers that defines a layer's class."""
    return sys.modules[type(self).__module__]


_FORWARDS: dict[str, Callable[..., Any]] = {
    "opt": _opt,
    "whisper": _whisper,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "bloom": _bloom,
    "falcon": _falcon,
    "mpnet": _mpnet,
    "stablelm": _stablelm,
}
