"""The one place where the attention of any loaded model can be looked at, and its keys and values changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from gqakit.models.remote_code.adapters import attention_mask_for
from gqakit.models.remote_code.attention import grouped_attention_forward, mask_with_bias, ordinary_heads

_NAME = "gqakit_watched"


class Attending(NamedTuple):
    """One call of an attention function. Batch B, query heads H, new positions T, cached positions S.

    Attributes:
        query: `[B, H, T, d]`, rotated where positions are.
        key, value: `[B, KV heads, S, d]`, as a cache holds them.
        mask: boolean or added to the scores, with the model's position bias in it; None for none.
        scaling: factor on the scores.
        causal: later positions are masked, without a mask.
        softcap, sinks: see `gqakit.models.remote_code.attention.Scoring`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    causal: bool
    softcap: float | None
    sinks: Tensor | None = None


Look = Callable[[Attending], tuple[Tensor, Tensor]]
"""Sees a call, and says with which keys and values it is to go on."""

_looks: dict[nn.Module, Look] = {}


@contextmanager
def watched_attention(model: PreTrainedModel, looks: Mapping[nn.Module, Look]) -> Iterator[None]:
    """The model with some of its attention modules looked at.

    It computes what it did, by the same functions, for keys and values that a look gives. Stock modules must ask
    transformers' attention interface: see `gqakit.models.load.use_attention_interface`.

    Args:
        model: stock or grouped.
        looks: for each attention module what sees its calls.
    """
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, attention_mask_for)
    configs, before = _configs(model), {module: _looks.get(module) for module in looks}
    try:
        _looks.update(looks)
        # Not by `set_attn_implementation`: some models refuse it, and transformers only logs that.
        for config, _ in configs:
            config._attn_implementation = _NAME
        yield
    finally:
        for config, name in configs:
            config._attn_implementation = name
        for (
            module,
            look,
        ) in before.items():  # the registered function stays behind and must not keep the model alive
            del _looks[module]
            if look is not None:
                _looks[module] = look


def _configs(model: PreTrainedModel) -> list[tuple[Any, str | None]]:
    """The configs that modules of a model hold, each with the name of its attention function."""
    found = {
        id(config): config for m in model.modules() if (config := getattr(m, "config", None)) is not None
    }
    named = [config for config in found.values() if hasattr(config, "_attn_implementation")]
    return [(config, config._attn_implementation) for config in named]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: Any
) -> tuple[Tensor, Tensor | None]:
    """The attention that the model computes, after a look at its queries, keys and values.

    What transformers' interface passes besides: `dropout`, `scaling`, `is_causal`, `position_bias`, `softcap`,
    and sinks as `s_aux`.
    """
    dropout, softcap = how.pop("dropout", 0.0), how.pop("softcap", None)
    scaling, causal = how.pop("scaling", None), how.pop("is_causal", None)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = getattr(module, "is_causal", True) if causal is None else causal
    causal = query.shape[2] > 1 and attention_mask is None and causal
    position_bias = how.pop("position_bias", None)
    if position_bias is not None:
        attention_mask, causal = mask_with_bias(attention_mask, position_bias, causal, query, key), False
    sinks = None if how.get("s_aux") is None else how["s_aux"].view(1, -1, 1, 1)
    look = _looks.get(module)
    if look is not None:
        key, value = look(Attending(query, key, value, attention_mask, scale, causal, softcap, sinks))
    if hasattr(module, "grouped_heads"):
        how |= {"dropout": dropout, "scaling": scale, "is_causal": causal, "softcap": softcap}
        return grouped_attention_forward(module, query, key, value, attention_mask, **how)
    group = query.shape[1] // key.shape[1]
    if softcap is not None or sinks is not None:  # only transformers' eager functions know these
        heads = ordinary_heads(query.shape[1], key.shape[1])
        out = heads.attend(query, key, value, attention_mask, dropout, scale, causal, softcap, sinks)
        return out.transpose(1, 2).contiguous(), None
    if not hasattr(module, "num_key_value_groups"):  # by which transformers' function repeats keys and values
        key, value = (states.repeat_interleave(group, dim=1) for states in (key, value))  # [B, H, S, d]
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scale, causal, **how)
