"""Forward passes for the attention modules whose own code takes the number of KV heads for granted.

Most families shape keys and values by the width of their projections, and need nothing here. These do not: they
have a fused projection, a fixed view, or attention of their own that asks no attention function. Each forward
computes what the family's own does, for any number of heads; what a family passes and no forward uses goes by
in `**kwargs`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout
from transformers.cache_utils import EncoderDecoderCache
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import grouped_attention_forward
from .configuration import ATTENTION, EAGER
from .heads import HeadMaps
from .packing import DeviceIndex, Mask

# Those whose norms see heads before positions.
HEADS_FIRST = "gemma3_text", "gemma3", "apertus", "exaone4", "hunyuan_v1_dense", "phi", "stablelm"
States = tuple[Tensor, Tensor, Tensor]  # queries, keys and values, [B, heads, T, d] each
Out = tuple[Tensor, Any]  # [B, T, hidden size], and attention weights if any


def adapt(attention: Any, model_type: str, config: Any, heads: HeadMaps | None = None) -> None:
    """Make an attention module run any number of KV heads, where its own code does not.

    Args:
        attention: the module that calls the attention function.
        model_type: the family's.
        config: the model's.
        heads: the head maps; None leaves a stock layer as it is but for going through the attention function.
    """
    if model_type == "phi3" and heads is not None:
        attention.num_key_value_heads = heads.num_key_heads  # where its forward cuts the fused projection
    if model_type == "mpt" and heads is None:  # its fused projection lies in blocks as it is
        heads = HeadMaps(*[tuple(range(attention.n_heads))] * 2)
    attention.head_maps = heads
    forward = _FORWARDS.get(model_type)
    if forward is not None:
        attention.config = config
        attention.forward = MethodType(forward, attention)


def map_behind(norm: Any, heads: int, dim: int, model_type: str, merged: Sequence[int] | None) -> None:
    """Give a normalisation `maps`, `[heads, d, d]`, one for each head that it puts out.

    Args:
        norm: the module. heads: that it puts out. dim: channels of a head. model_type: the family's.
        merged: which head each becomes part of, if any.
    """
    norm.maps = torch.nn.Parameter(torch.eye(dim).repeat(heads, 1, 1))
    into = None
    if merged is not None:
        into = DeviceIndex([[int(head == each) for each in merged] for head in range(max(merged) + 1)])
    norm.register_forward_hook(partial(map_heads, model_type in HEADS_FIRST, into))


def map_heads(first: bool, into: DeviceIndex | None, norm: Any, args: Any, states: Tensor) -> Tensor:
    """The forward hook: `norm.maps` act on each head, then those add up where a row of `into` has a 1."""
    mapped = torch.einsum("...hd,hed->...he", by_head(states, norm.maps.shape[-1], first), norm.maps)
    if into is not None:
        mapped = into.on(mapped.device).to(mapped.dtype) @ mapped
    return mapped.transpose(1, 2) if first else mapped.flatten(2) if states.ndim == 3 else mapped


def by_head(states: Tensor, dim: int, first: bool) -> Tensor:
    """What a normalisation puts out as `[B, T, heads, d]`; `first`: it has heads before positions."""
    return (
        states.transpose(1, 2) if first else states.unflatten(-1, (-1, dim)) if states.ndim == 3 else states
    )


def prepare(model_type: str) -> None:
    """What must be known before transformers builds a model: some look their attention class up by function."""
    if model_type in ("falcon", "gptj"):
        modeling = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
        classes = getattr(modeling, f"{model_type.upper()}_ATTENTION_CLASSES", {})
        if "eager" in classes:
            classes |= dict.fromkeys((ATTENTION, EAGER), classes["eager"])


def attention_mask_for(*sizes: Any, config: Any = None, **kwargs: Any) -> Mask:
    """Transformers' mask for SDPA; MPT takes what is not 0 in its mask for eager attention as hidden."""
    make = eager_mask if config is not None and config.model_type == "mpt" else sdpa_mask
    return make(*sizes, config=config, **kwargs)


def _heads(states: Tensor, dim: int) -> Tensor:
    """`[B, T, heads · d]` to `[B, heads, T, d]`."""
    return states.unflatten(-1, (-1, dim)).transpose(1, 2)


def _split(self: Any, hidden_states: Tensor) -> States:
    """From separate projections `q_proj`, `k_proj` and `v_proj`."""
    query, key, value = (project(hidden_states) for project in (self.q_proj, self.k_proj, self.v_proj))
    return _heads(query, self.head_dim), _heads(key, self.head_dim), _heads(value, self.head_dim)


def _fused(self: Any, states: Tensor, dim: int) -> States:
    """From the output of a fused projection, `[B, T, heads of q, k and v · d]`."""
    maps = self.head_maps
    if maps is not None:
        sizes = (len(maps.key_head_of_query), maps.num_key_heads, maps.num_value_heads)
        query, key, value = states.split([size * dim for size in sizes], dim=-1)
        return _heads(query, dim), _heads(key, dim), _heads(value, dim)
    # A stock layer: for each KV head in turn its queries, its key, its value.
    num_heads = self.config.num_attention_heads
    kv_heads = (states.shape[-1] // dim - num_heads) // 2
    turns = states.unflatten(-1, (kv_heads, num_heads // kv_heads + 2, dim))  # [B, T, KV heads, turn, d]
    query = turns[..., :-2, :].flatten(2, 3)
    return query.transpose(1, 2), turns[..., -2, :].transpose(1, 2), turns[..., -1, :].transpose(1, 2)


def _attend(self: Any, states: States, scaling: float, rate: float, kwargs: dict[str, Any]) -> Out:
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


def _rotated(self: Any, states: States, kwargs: dict[str, Any]) -> States:
    """Queries and keys after RoPE, by the function of the module of transformers that defines the layer."""
    query, key, value = states
    rotate = sys.modules[type(self).__module__].apply_rotary_pos_emb
    return *rotate(query, key, *kwargs.pop("position_embeddings")), value


def _opt(self: Any, hidden_states: Tensor, **kwargs: Any) -> Out:
    query, key, value = _split(self, hidden_states)
    out, weights = _attend(self, (query * self.scaling, key, value), 1.0, self.dropout, kwargs)
    return self.out_proj(out), weights


def _whisper(self: Any, hidden_states: Tensor, key_value_states: Tensor | None = None, **kwargs: Any) -> Out:
    cross, cache, known = key_value_states is not None, kwargs.pop("past_key_values", None), False
    if isinstance(cache, EncoderDecoderCache):
        known = bool(cross and cache.is_updated.get(self.layer_idx))
        if cross:
            cache.is_updated[self.layer_idx] = True
        cache = cache.cross_attention_cache if cross else cache.self_attention_cache
    first = (
        self.scaling if hasattr(self, "out_proj") else 1.0
    )  # Moonshine, which has no such module, scales scores
    query = _heads(self.q_proj(hidden_states) * first, self.head_dim)
    if known and cache is not None:
        key, value = cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        cache = None
    else:
        other = hidden_states if key_value_states is None else key_value_states
        key, value = _heads(self.k_proj(other), self.head_dim), _heads(self.v_proj(other), self.head_dim)
    states = query, key, value
    if kwargs.get("position_embeddings") is not None:  # Moonshine's
        states = _rotated(self, states, kwargs)
    kwargs["past_key_values"] = cache
    rate = self.dropout if hasattr(self, "dropout") else self.attention_dropout
    out, weights = _attend(self, states, self.scaling / first, rate, kwargs)
    return (self.out_proj if hasattr(self, "out_proj") else self.o_proj)(out), weights


def _gpt2(self: Any, hidden_states: Tensor, past_key_values: Any = None, **kwargs: Any) -> Out:
    states, cache = _fused(self, self.c_attn(hidden_states), self.head_dim), past_key_values
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    kwargs["past_key_values"] = cache
    rate = getattr(self.attn_dropout, "p", self.attn_dropout)  # a number in GPTBigCode
    out, weights = _attend(self, states, self.scaling, rate, kwargs)
    return self.resid_dropout(self.c_proj(out)), weights


def _gpt_neox(self: Any, hidden_states: Tensor, attention_mask: Mask = None, **kwargs: Any) -> Out:
    states = _fused(self, self.query_key_value(hidden_states), self.head_size)
    states, kwargs["attention_mask"] = _rotated(self, states, kwargs), attention_mask
    out, weights = _attend(self, states, self.scaling, self.attention_dropout, kwargs)
    return self.dense(out), weights


def _modernbert(self: Any, hidden_states: Tensor, **kwargs: Any) -> Out:
    states = _rotated(self, _fused(self, self.Wqkv(hidden_states), self.head_dim), kwargs)
    out, weights = _attend(self, states, self.head_dim**-0.5, self.attention_dropout, kwargs)
    return self.out_drop(self.Wo(out)), weights


def _bloom(self: Any, hidden_states: Tensor, residual: Tensor, alibi: Tensor, **kwargs: Any) -> Out:
    states = _fused(self, self.query_key_value(hidden_states), self.head_dim)
    bias = alibi.reshape(hidden_states.shape[0], self.num_heads, -1, alibi.shape[-1])  # [B, heads, 1, S]
    kwargs["position_bias"] = bias
    out, weights = _attend(self, states, self.inv_norm_factor, self.attention_dropout.p, kwargs)
    return residual + dropout(self.dense(out), p=self.hidden_dropout, training=self.training), weights


def _falcon(
    self: Any, hidden_states: Tensor, alibi: Tensor | None, attention_mask: Mask, **kwargs: Any
) -> Out:
    states = _fused(self, self.query_key_value(hidden_states), self.head_dim)
    if alibi is None:
        states = _rotated(self, states, kwargs)
    # With linear position biases the mask already holds them.
    rate, kwargs["attention_mask"] = 0.0 if alibi is None else self.attention_dropout.p, attention_mask
    out, weights = _attend(self, states, self.inv_norm_factor, rate, kwargs)
    return self.dense(out), weights


def _mpt(
    self: Any, hidden_states: Tensor, position_bias: Tensor, attention_mask: Tensor, **kwargs: Any
) -> Out:
    states = _fused(self, self.Wqkv(hidden_states), self.head_dim)
    bias = position_bias[None, ..., -attention_mask.shape[-1] :]  # [1, heads, 1, S]
    kwargs |= {"attention_mask": ~attention_mask, "position_bias": bias}  # a mask of what is hidden
    out, weights = _attend(self, states, self.softmax_scale, self.attn_dropout_p, kwargs)
    return self.out_proj(out), weights


def _mpnet(
    self: Any, hidden_states: Tensor, mask: Mask, bias: Tensor, output_attentions: bool = False, **kwargs: Any
) -> Out | tuple[Tensor]:
    dim = self.attention_head_size
    query, key, value = (_heads(project(hidden_states), dim) for project in (self.q, self.k, self.v))
    how = {
        "attention_mask": mask,
        "position_bias": bias,
        "is_causal": False,
        "output_attentions": output_attentions,
    }
    out, weights = _attend(self, (query, key, value), dim**-0.5, self.dropout.p, how)
    return (self.o(out), weights) if output_attentions else (self.o(out),)


def _stablelm(self: Any, hidden_states: Tensor, **kwargs: Any) -> Out:
    query, key, value = _split(self, hidden_states)
    if self.qk_layernorm:
        query, key = self.q_layernorm(query), self.k_layernorm(key)
    width = self.rotary_ndims  # the first channels of a head rotate
    turned = _rotated(self, (query[..., :width], key[..., :width], value), kwargs)
    query = torch.cat([turned[0], query[..., width:]], dim=-1)
    key = torch.cat([turned[1], key[..., width:]], dim=-1)
    out, weights = _attend(self, (query, key, value), self.scaling, self.attention_dropout, kwargs)
    return self.o_proj(out), weights


def _quarters(self: Any, hidden_states: Tensor) -> States:
    """From CodeGen's fused projection: of a stock layer four parts, each of queries, values and keys."""
    states = self.qkv_proj(hidden_states)
    if self.head_maps is not None:
        return _fused(self, states, self.head_dim)
    parts = states.unflatten(-1, (4, 3, -1, self.head_dim))  # [B, T, quarters, q v k, heads of a quarter, d]
    query, value, key = (part.flatten(2, 3).transpose(1, 2) for part in parts.unbind(3))
    return query, key, value


def _gptj(self: Any, hidden_states: Tensor, position_ids: Any = None, **kwargs: Any) -> Out:
    query, key, value = (
        _split(self, hidden_states) if hasattr(self, "q_proj") else _quarters(self, hidden_states)
    )
    width = self.rotary_dim or self.head_dim  # the first channels of a head rotate
    turns = (
        self.embed_positions.to(key.device)[position_ids].to(key.dtype).chunk(2, dim=-1)
    )  # [B or 1, T, width / 2]
    rotate = sys.modules[type(self).__module__].apply_rotary_pos_emb  # of [B, T, heads, width]
    query, key = (
        torch.cat(
            [rotate(part[..., :width].transpose(1, 2), *turns).transpose(1, 2), part[..., width:]], dim=-1
        )
        for part in (query, key)
    )
    how = {
        name: kwargs[name] for name in ("layer_past", "attention_mask", "output_attentions") if name in kwargs
    }
    out, weights = _attend(self, (query, key, value), self.head_dim**-0.5, self.attn_dropout.p, how)
    return self.resid_dropout(self.out_proj(out)), weights


_NEEDED = (_opt, _whisper, _gpt2, _gpt_neox, _modernbert, _bloom, _falcon, _mpt, _mpnet, _stablelm, _gptj)
_FORWARDS: dict[str, Callable[..., Any]] = {forward.__name__[1:]: forward for forward in _NEEDED}
_FORWARDS |= {"codegen": _gptj, "gpt_bigcode": _gpt2, "moonshine": _whisper}
