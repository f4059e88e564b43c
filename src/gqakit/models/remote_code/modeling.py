"""Models with grouped heads: each family's own, with smaller k/v projections and one attention function.

The classes are made when they are asked for: `GqakitLlamaForCausalLM` is transformers' `LlamaForCausalLM` with
`GroupedModel` before it.
"""

from __future__ import annotations

import copy
from functools import cache, partial
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, conversion_mapping
from transformers.cache_utils import StaticLayer
from transformers.pytorch_utils import Conv1D

from .adapters import adapt, attention_mask_for, map_behind, prepare
from .attention import GroupedHeads, grouped_attention_forward
from .configuration import ATTENTION, EAGER, PREFIX, config_class, family_class

VLLM = "vllm"  # what its Transformers backend registers its attention as
AttentionInterface.register(ATTENTION, grouped_attention_forward)
AttentionInterface.register(EAGER, partial(grouped_attention_forward, weighs=True))
AttentionMaskInterface.register(ATTENTION, attention_mask_for)
AttentionMaskInterface.register(EAGER, attention_mask_for)

_UNSUPPORTED = ("sdpa", "flash", "flex", "paged")  # take one group size; an engine's own are let through


class GroupedModel(PreTrainedModel):
    """What a grouped model adds to its family's. The family's class must come second in the bases."""

    _supports_flash_attn = _supports_flex_attn = False

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        prepare(config.model_type.removeprefix("gqakit_"))
        parts = [getattr(config, part) for part in (config.gqakit or {}).get("parts", ())]
        for part in (config.get_text_config(), *parts):
            part._attn_implementation = config._attn_implementation or ATTENTION
        if super().__init__.__module__ == "transformers.modeling_layers":  # makes its body by an auto class
            body: Any = transformers.MODEL_MAPPING[type(config).__bases__[1]]
            transformers.AutoModel.register(type(config), model_class(PREFIX + body.__name__), exist_ok=True)
        super().__init__(config, *args, **kwargs)
        install_grouped_heads(self)

    def get_correct_attn_implementation(
        self, requested_attention: str | None, is_init_check: bool = False
    ) -> str:
        """The attention function to use, at construction and in `set_attn_implementation`: ours by default.

        Raises:
            ValueError: one of transformers' own functions is asked for, which cannot run unequal groups.
        """
        requested_attention = EAGER if requested_attention == "eager" else requested_attention or ATTENTION
        if requested_attention.startswith(_UNSUPPORTED):
            raise ValueError(
                f'attn_implementation="{requested_attention}" cannot run grouped heads. '
                f'Leave it out or pass "{ATTENTION}", which runs PyTorch\'s SDPA over the groups.'
            )
        if requested_attention == VLLM and VLLM in AttentionInterface():
            layers = self.config.layer_heads()
            if any(heads.merged_keys for heads in layers):
                raise ValueError(
                    "vLLM replaces normalisations, and keys of this checkpoint are merged behind them. "
                    "Convert with `--format uniform` for it."
                )
            if any(heads.key_head_of_query != heads.value_head_of_query for heads in layers):
                raise ValueError(
                    "vLLM caches as many value heads as key heads, which differ in this checkpoint. "
                    "Use gqakit's vLLM plugin (see docs/serving.md), or `gqakit export --to uniform`."
                )
            pad_groups_for_vllm()
        return super().get_correct_attn_implementation(requested_attention, is_init_check)


def pad_groups_for_vllm() -> None:
    """Have vLLM's attention function get groups of one size: each group padded to the size of the largest.

    vLLM makes a layer's attention from numbers of heads, which `GroupedConfig` gives it with the padding in.
    """
    function: Any = AttentionInterface()[VLLM]
    if getattr(function, "pads_groups", False):
        return

    def forward(module: Any, query: torch.Tensor, *states: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        heads = getattr(module, "grouped_heads", None)
        if heads is None or heads.ordinary:
            return function(module, query, *states, **kwargs)
        packing = heads.padded.keys
        packed = query.index_select(1, packing.query_of_place.on(query.device))  # [1, places, tokens, d]
        out, _ = function(module, packed, *states, **kwargs)  # [tokens, places · d]
        heads_out = out.unflatten(-1, (packed.shape[1], -1))
        return heads_out.index_select(-2, packing.place_of_query.on(out.device)).flatten(-2), None

    forward.pads_groups = True  # pyright: ignore[reportFunctionMemberAccess]
    AttentionInterface.register(VLLM, forward)


def install_grouped_heads(model: PreTrainedModel) -> None:
    """Shrink each attention module's k and v projections to the layer's heads, and give it the head maps.

    Raises:
        ValueError: the config has no head maps, or the model has no attention module for some of them.
    """
    heads_of_layer = model.config.layer_heads()
    section = model.config.gqakit
    dim, names = section["head_dim"], section["projections"]
    for entry, heads in zip(section["layers"], heads_of_layer, strict=True):
        try:
            attention: Any = model.base_model.get_submodule(entry["attention"])
        except AttributeError as error:
            raise ValueError(
                f"{type(model).__name__}: transformers {transformers.__version__} builds no module "
                f"{entry['attention']}, where the config has a head map; another release may."
            ) from error
        if hasattr(attention, "grouped_heads"):  # of a base model that an auto class made for a head
            continue
        merged, query = heads.merged_keys, len(heads.key_head_of_query)
        key, value = len(merged or range(heads.num_key_heads)), heads.num_value_heads
        for role, count in {"fused": query + key + value, "key": key, "value": value}.items():
            if role in names:
                _resize(model, attention.get_submodule(names[role]), count * dim)
        if "key_norm" in names:
            norm = attention.get_submodule(names["key_norm"])
            if hasattr(norm, "norms"):  # one for each head
                norm.norms = nn.ModuleList(copy.deepcopy(norm.norms[0]) for _ in range(key))
            else:  # [heads · d] or [heads, d]
                norm.weight = nn.Parameter(norm.weight.new_ones(key * dim).view(-1, *norm.weight.shape[1:]))
        if merged is not None:
            for name, count, into in zip(section["norms"], (query, key), (None, merged), strict=True):
                map_behind(attention.get_submodule(name), count, dim, section["base_model_type"], into)
        attention.grouped_heads = GroupedHeads(heads)
        adapt(attention, section["base_model_type"], model.config, heads)
        if heads.num_key_heads != heads.num_value_heads and hasattr(attention, "layer_idx"):
            attention.register_forward_pre_hook(_refuse_static_cache, with_kwargs=True)


def _resize(model: PreTrainedModel, linear: Any, rows: int) -> None:
    """Give a projection another output size, and new weights where it has any."""
    weight, columns = linear.weight, isinstance(linear, Conv1D)  # Conv1D keeps its weight as [in, out]
    shape = (weight.shape[0], rows) if columns else (rows, weight.shape[1])
    linear.weight = nn.Parameter(weight.new_zeros(shape))
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.new_zeros(rows))
    setattr(linear, "nf" if columns else "out_features", rows)
    if weight.device.type != "meta":
        with torch.no_grad():
            model._init_weights(linear)


def _refuse_static_cache(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    layers = getattr(kwargs.get("past_key_values"), "layers", ())
    if module.layer_idx < len(layers) and isinstance(layers[module.layer_idx], StaticLayer):
        raise ValueError(
            f"layer {module.layer_idx} has different numbers of key and value heads, "
            "and transformers' StaticCache gives both the same number. Use the default (dynamic) cache."
        )


def _keep_renamings(base: Any, grouped: str) -> None:
    """Read and write a grouped class's tensors under the names that the family's class `base` has for them in files."""
    known = conversion_mapping.get_checkpoint_conversion_mapping
    mapping = known(base.__name__) or known(base.config_class.model_type)
    if mapping is not None:
        conversion_mapping.register_checkpoint_conversion_mapping(grouped, mapping, overwrite=True)


@cache
def model_class(name: str) -> Any:
    """The model class `Gqakit...`."""
    base = family_class(name)
    config = config_class(f"{PREFIX}{base.config_class.__name__}")
    _keep_renamings(base, name)
    document = f"`{base.__name__}` with grouped heads."
    added = {"__module__": __name__, "__doc__": document, "config_class": config}
    return type(name, (GroupedModel, base), added)


__getattr__ = model_class  # transformers, and pickle, look classes up in their module
