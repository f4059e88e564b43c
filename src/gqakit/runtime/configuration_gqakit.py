"""Configurations of grouped checkpoints, one small subclass for each model family.

This file is copied into every grouped checkpoint, so it imports nothing of gqakit.
A new family is one more class here, one more pair in `modeling_gqakit.py` and one line in `families.py`.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

from .heads_gqakit import LayerHeads, read_layers


class GroupedConfig:
    """What a grouped configuration adds to its family's: the checked `gqakit` section.

    The base of the family's config class must come second, as `__post_init__` runs the family's first.
    """

    model_type: str
    gqakit: dict | None
    num_hidden_layers: int
    num_attention_heads: int

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill the family's fields, then check the head maps.

        Raises:
            ValueError: the section names another family, or `read_layers` refuses it.
        """
        super().__post_init__(**kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if self.gqakit is not None:  # transformers builds configs without arguments to compare defaults
            self.layer_heads()

    def layer_heads(self) -> list[LayerHeads]:
        """The head maps, one entry a layer.

        Raises:
            ValueError: there is no `gqakit` section, it names another family, or it is malformed.
        """
        if self.gqakit is None:
            raise ValueError(
                f"config.json: model_type {self.model_type!r} needs a `gqakit` section, there is none."
            )
        base = self.gqakit.get("base_model_type")
        if f"gqakit_{base}" != self.model_type:
            raise ValueError(
                f"config.json: gqakit.base_model_type is {base!r}, "
                f"which does not fit model_type {self.model_type!r}."
            )
        return read_layers(self.gqakit, self.num_hidden_layers, self.num_attention_heads)


# Each class is decorated again: a subclass inherits `strict`'s validators but not its `validate`, and
# `save_pretrained` then fails.
@strict
class GqakitLlamaConfig(GroupedConfig, LlamaConfig):
    """Llama with grouped heads."""

    model_type = "gqakit_llama"
    gqakit: dict | None = None


@strict
class GqakitMistralConfig(GroupedConfig, MistralConfig):
    """Mistral with grouped heads."""

    model_type = "gqakit_mistral"
    gqakit: dict | None = None


@strict
class GqakitQwen2Config(GroupedConfig, Qwen2Config):
    """Qwen2 and Qwen2.5 with grouped heads."""

    model_type = "gqakit_qwen2"
    gqakit: dict | None = None


@strict
class GqakitQwen3Config(GroupedConfig, Qwen3Config):
    """Qwen3 with grouped heads."""

    model_type = "gqakit_qwen3"
    gqakit: dict | None = None
