"""The `config.json` of a grouped checkpoint, from its source's and the head maps. Pure Python."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from gqakit.errors import FamilyError, PlanError
from gqakit.runtime.families import CLASS_PREFIX_OF_FAMILY
from gqakit.runtime.heads_gqakit import FORMAT_VERSION, read_layers

HeadMap = Sequence[int]


def grouped_config(config: dict[str, Any], query_maps: Sequence[tuple[HeadMap, HeadMap]]) -> dict[str, Any]:
    """The raw config of a grouped checkpoint.

    Args:
        config: the source's raw `config.json`; it is not changed.
        query_maps: for each layer the key head and the value head of every query head, labels 0..n-1.

    Returns:
        A new config: own `model_type`, `architectures` and `auto_map`, the largest number of key heads as
        `num_key_value_heads` with the layers that differ in `per_layer_config`, and the maps in `gqakit`.

    Raises:
        FamilyError: the family has no grouped runtime.
        PlanError: the maps do not fit the config's layers and query heads.
    """
    family = config.get("model_type")
    if family not in CLASS_PREFIX_OF_FAMILY:
        known = ", ".join(sorted(CLASS_PREFIX_OF_FAMILY))
        raise FamilyError(
            f"config.json: model_type {family!r} has no grouped runtime. Known: {known}. "
            "Use the uniform format."
        )
    section = {
        "format_version": FORMAT_VERSION,
        "base_model_type": family,
        "layers": [
            {
                "key_head_of_query": [int(head) for head in key_map],
                "value_head_of_query": [int(head) for head in value_map],
            }
            for key_map, value_map in query_maps
        ],
    }
    try:
        layers = read_layers(section, config["num_hidden_layers"], config["num_attention_heads"])
    except KeyError as error:
        raise FamilyError(f"config.json: {error.args[0]} is missing.") from error
    except ValueError as error:
        raise PlanError(f"the head maps do not fit the model. {error}") from error

    stem = f"Gqakit{CLASS_PREFIX_OF_FAMILY[family]}"
    num_key_heads = [layer.num_key_heads for layer in layers]
    new = copy.deepcopy(config)
    new["model_type"] = f"gqakit_{family}"
    new["architectures"] = [f"{stem}ForCausalLM"]
    new["auto_map"] = {
        "AutoConfig": f"configuration_gqakit.{stem}Config",
        "AutoModel": f"modeling_gqakit.{stem}Model",
        "AutoModelForCausalLM": f"modeling_gqakit.{stem}ForCausalLM",
    }
    new["num_key_value_heads"] = max(num_key_heads)
    _set_per_layer(new, num_key_heads)
    new["gqakit"] = section
    return new


def _set_per_layer(config: dict[str, Any], num_key_heads: list[int]) -> None:
    """Note the layers that differ from the global number of key heads, in transformers' own notation."""
    per_layer = {
        str(int(index)): dict(values) for index, values in config.pop("per_layer_config", {}).items()
    }
    for index, count in enumerate(num_key_heads):
        overrides = per_layer.setdefault(str(index), {})
        overrides.pop("num_key_value_heads", None)
        if count != config["num_key_value_heads"]:
            overrides["num_key_value_heads"] = count
    per_layer = {index: overrides for index, overrides in per_layer.items() if overrides}
    if per_layer:
        config["per_layer_config"] = per_layer
        # The families' stock code reads the global number while it builds; ours then shrinks each layer.
        config["allow_global_per_layer_attribute_access"] = True
