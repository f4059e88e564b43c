"""Models with grouped heads: each family's own, with smaller k/v projections and one attention function.

This file is copied into every grouped checkpoint, so it imports nothing of gqakit.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import StaticLayer
from transformers.masking_utils import sdpa_mask
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaModel
from transformers.models.mistral.modeling_mistral import MistralForCausalLM, MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM, Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM, Qwen3Model

from .attention_gqakit import GroupedHeads, grouped_attention_forward
from .configuration_gqakit import (
    GqakitLlamaConfig,
    GqakitMistralConfig,
    GqakitQwen2Config,
    GqakitQwen3Config,
)

ATTENTION = "gqakit"
AttentionInterface.register(ATTENTION, grouped_attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)

# Transformers' own functions take one group size; a function that an engine registers is let through.
_UNSUPPORTED = ("eager", "sdpa", "flash", "flex", "paged")


class GroupedModel(PreTrainedModel):
    """What a grouped model adds to its family's. The family's class must come second in the bases."""

    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        install_grouped_heads(self)

    def get_correct_attn_implementation(
        self, requested_attention: str | None, is_init_check: bool = False
    ) -> str:
        """The attention function to use, at construction and in `set_attn_implementation`: ours by default.

        Raises:
            ValueError: one of transformers' own functions is asked for, which cannot run unequal groups.
        """
        requested_attention = requested_attention or ATTENTION
        if requested_attention.startswith(_UNSUPPORTED):
            raise ValueError(
                f'attn_implementation="{requested_attention}" cannot run grouped heads. '
                f'Leave it out or pass "{ATTENTION}", which runs PyTorch\'s SDPA over the groups.'
            )
        return super().get_correct_attn_implementation(requested_attention, is_init_check)


def install_grouped_heads(model: PreTrainedModel) -> None:
    """Shrink each attention module's k and v projections to the layer's heads, and give it the head maps.

    Raises:
        ValueError: the config has no head maps, or the model has no attention module for some of them.
    """
    layers = model.config.layer_heads()
    attentions: list[Any] = [module for module in model.modules() if hasattr(module, "k_proj")]
    if sorted(attention.layer_idx for attention in attentions) != list(range(len(layers))):
        raise ValueError(
            f"{type(model).__name__}: {len(layers)} head maps for {len(attentions)} attention modules."
        )
    for attention in attentions:
        heads = layers[attention.layer_idx]
        attention.k_proj = _smaller(model, attention.k_proj, heads.num_key_heads * attention.head_dim)
        attention.v_proj = _smaller(model, attention.v_proj, heads.num_value_heads * attention.head_dim)
        attention.grouped_heads = GroupedHeads(heads)
        if heads.num_key_heads != heads.num_value_heads:
            attention.register_forward_pre_hook(_refuse_static_cache, with_kwargs=True)


def _smaller(model: PreTrainedModel, linear: nn.Linear, out_features: int) -> nn.Linear:
    """A new projection like `linear` (bias, dtype, device, initialisation) with another output size."""
    weight = linear.weight
    has_bias = linear.bias is not None
    new = nn.Linear(linear.in_features, out_features, bias=has_bias, device=weight.device, dtype=weight.dtype)
    if weight.device.type != "meta":
        model._init_weights(new)
    return new


def _refuse_static_cache(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    layers = getattr(kwargs.get("past_key_values"), "layers", ())
    if module.layer_idx < len(layers) and isinstance(layers[module.layer_idx], StaticLayer):
        raise ValueError(
            f"layer {module.layer_idx} has different numbers of key and value heads, "
            "and transformers' StaticCache gives both the same number. Use the default (dynamic) cache."
        )


class GqakitLlamaModel(GroupedModel, LlamaModel):
    """Llama with grouped heads, without the language-model head."""

    config_class = GqakitLlamaConfig


class GqakitLlamaForCausalLM(GroupedModel, LlamaForCausalLM):
    """Llama with grouped heads."""

    config_class = GqakitLlamaConfig


class GqakitMistralModel(GroupedModel, MistralModel):
    """Mistral with grouped heads, without the language-model head."""

    config_class = GqakitMistralConfig


class GqakitMistralForCausalLM(GroupedModel, MistralForCausalLM):
    """Mistral with grouped heads."""

    config_class = GqakitMistralConfig


class GqakitQwen2Model(GroupedModel, Qwen2Model):
    """Qwen2 and Qwen2.5 with grouped heads, without the language-model head."""

    config_class = GqakitQwen2Config


class GqakitQwen2ForCausalLM(GroupedModel, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5 with grouped heads."""

    config_class = GqakitQwen2Config


class GqakitQwen3Model(GroupedModel, Qwen3Model):
    """Qwen3 with grouped heads, without the language-model head."""

    config_class = GqakitQwen3Config


class GqakitQwen3ForCausalLM(GroupedModel, Qwen3ForCausalLM):
    """Qwen3 with grouped heads."""

    config_class = GqakitQwen3Config
