"""Fits a family's attention modules to any number of KV heads: another forward pass, maps behind norms, masks."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import eager_mask, sdpa_mask

from .configuration import ATTENTION, EAGER
from .forward import forward_of
from .heads import HeadMaps
from .packing import DeviceIndex, Mask

# Those whose norms see heads before positions.
HEADS_FIRST = "gemma3_text", "gemma3", "apertus", "exaone4", "hunyuan_v1_dense", "phi", "stablelm"


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
    forward = forward_of(model_type)
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
    """Transformers' mask for SDPA, never left out with weights; MPT takes what is not 0 in its eager mask as hidden."""
    make = eager_mask if config is not None and config.model_type == "mpt" else sdpa_mask
    shown = {"allow_is_causal_skip": False} if getattr(config, "_attn_implementation", "") == EAGER else {}
    return make(*sizes, config=config, **kwargs | shown)
