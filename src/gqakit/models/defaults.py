"""A `config.json` with what it leaves out, as transformers' own config class would read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gqakit.errors import FamilyError
from gqakit.models.families import FAMILIES
from gqakit.models.spec import GROUPED_PREFIX

_OURS = ("model_type", "gqakit", "auto_map", "per_layer_config", "allow_global_per_layer_attribute_access")
"""What a grouped checkpoint has that its family's config class must not see."""


def needs_defaults(config: Mapping[str, Any]) -> bool:
    """Whether a config leaves something out that a `ModelSpec` rests on, which transformers then has a default for.

    Mistral has 8 KV heads, Qwen3's heads are 128 wide, whatever the width of the model; Gemma's output matrix is its
    embeddings, Llama's is not.
    """
    family = FAMILIES.get(str(config.get("model_type")).removeprefix(GROUPED_PREFIX))
    if family is None:
        return False
    family = family.holding(config)
    read = [key for stack in family.stacks for key in (stack.num_layers, stack.num_heads)]
    read += [family.hidden_size, "tie_word_embeddings", *([family.rotary_dim] if family.rotary_dim else [])]
    if family.num_kv_heads is not None:  # in the other families heads follow from the width
        read += [family.num_kv_heads, family.head_dim]
    part = family.part(config)
    return not all(any(each in part for each in key.split("|")) for key in read)


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every key that its family's config class has; what it states stays as it states it.

    Raises:
        FamilyError: transformers refuses the config.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    model_type = str(config.get("model_type")).removeprefix(GROUPED_PREFIX)
    stated = {key: value for key, value in config.items() if key not in _OURS}
    try:
        known = AutoConfig.for_model(model_type, **stated).to_dict()
    except (StrictDataclassError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())
        raise FamilyError(
            f"config.json of this {model_type}: transformers refuses it ({said[:300]})"
        ) from error
    whole = {**known, **config}
    family = FAMILIES[model_type]
    if not family.section:
        return whole
    stated = config.get(family.section) or {}
    return family.with_part(whole, {**family.part(known), **stated})
