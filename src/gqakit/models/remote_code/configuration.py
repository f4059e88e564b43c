"""Configurations of grouped checkpoints: each model family's own, with the head maps.

The classes are made when they are asked for: `GqakitLlamaConfig` is transformers' `LlamaConfig` with a `gqakit`
section.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import transformers
from huggingface_hub.dataclasses import strict

from .heads import HeadMaps, read_layers

PREFIX = "Gqakit"
ATTENTION = "gqakit"
EAGER = "gqakit_eager"  # what "eager" means to a grouped model: the same with attention weights


class GroupedConfig:
    """What a grouped configuration adds to its family's class, which comes second: the checked `gqakit` section."""

    model_type: str
    gqakit: dict | None
    get_text_config: Any

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill the family's fields, then check the head maps.

        Raises:
            ValueError: the section names another family, or `read_layers` refuses it.
        """
        super().__post_init__(**kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if self.gqakit is not None:  # transformers builds configs without arguments to compare defaults
            layers = self.layer_heads()
            # What goes by it finds the family; files keep ours.
            self.model_type = self.gqakit["base_model_type"]
            if "vllm" in sys.modules:
                self._set_padded_heads(layers)
            # Layers that differ are meant: no remark of transformers where the number for all is read.
            (getattr(self, "per_layer_attributes", None) or set()).clear()

    def _set_attention(self, name: Any) -> None:
        attention: Any = transformers.PreTrainedConfig._attn_implementation
        attention.fset(self, EAGER if name == "eager" else name)

    def _ask_for_weights(self, value: bool) -> None:
        self._attn_implementation = EAGER if value else self._attn_implementation
        self._output_attentions = value

    _attn_implementation = property(lambda self: self._attn_implementation_internal, _set_attention)
    output_attentions = property(lambda self: self._output_attentions, _ask_for_weights)

    def validate_output_attentions(self) -> None:
        """Nothing is wrong with asking for them, as there is with transformers' other functions."""

    def _set_padded_heads(self, layers: list[HeadMaps]) -> None:
        """Give each layer the number of query heads that its groups have when all are as large as the largest.

        Only vLLM reads these (and divides the width by them without a `head_dim`); `pad_groups_for_vllm` hands it queries.
        """
        text = self.get_text_config()
        per_layer = {int(i): dict(own) for i, own in text.to_dict().get("per_layer_config", {}).items()}
        for index, heads in enumerate(layers):
            largest = max(map(heads.key_head_of_query.count, range(heads.num_key_heads)))
            per_layer.setdefault(index, {})["num_attention_heads"] = heads.num_key_heads * largest
        text.head_dim = getattr(text, "head_dim", None) or (self.gqakit or {})["head_dim"]
        text.allow_global_per_layer_attribute_access = True
        text.per_layer_config = per_layer

    def layer_heads(self) -> list[HeadMaps]:
        """The head maps, one entry for each layer.

        Raises:
            ValueError: there is no `gqakit` section, it names another family, or it is malformed.
        """
        if self.gqakit is None:
            raise ValueError(
                f"config.json: model_type {type(self).model_type!r} needs a `gqakit` section, there is none."
            )
        base = self.gqakit.get("base_model_type")
        if f"gqakit_{base}" != type(self).model_type:
            raise ValueError(
                f"config.json: gqakit.base_model_type is {base!r}, "
                f"which does not fit model_type {type(self).model_type!r}."
            )
        layers, text = self.gqakit.get("layers"), self.get_text_config()
        if isinstance(layers, list) and self.gqakit.get("stacks") != ["decoder"]:
            return read_layers(self.gqakit, len(layers), None)  # which a config counts in its own ways
        return read_layers(self.gqakit, text.num_hidden_layers, text.num_attention_heads)


def family_class(name: str) -> Any:
    """The class of transformers behind `Gqakit...`.

    Raises:
        AttributeError: this release of transformers has none.
    """
    base = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if base is None:
        raise AttributeError(
            f"{name}: transformers {transformers.__version__} has no {name.removeprefix(PREFIX)}; another may."
        )
    return base


@cache
def config_class(name: str) -> Any:
    """The configuration class `Gqakit...Config`."""
    base = family_class(name)
    added = {
        "__module__": __name__,
        "__doc__": f"`{base.__name__}` with grouped heads.",
        "__annotations__": {"gqakit": dict | None},
        "model_type": f"gqakit_{base.model_type}",
        "gqakit": None,
    }
    # Decorated again: a subclass inherits `strict`'s validators but not its `validate`, and `save_pretrained` then fails.
    return strict(type(name, (GroupedConfig, base), added))


__getattr__ = config_class  # transformers, and pickle, look classes up in their module
