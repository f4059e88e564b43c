"""The `config.json` of a grouped checkpoint, from its source's and the head maps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from gqakit.errors import PlanError
from gqakit.models.architectures import architecture
from gqakit.models.families.base import Names, Stack
from gqakit.models.remote_code.heads import FORMAT_VERSION, read_layers
from gqakit.models.shipping import auto_map
from gqakit.models.spec import ModelSpec

HeadMap = Sequence[int]


def grouped_config(
    config: dict[str, Any],
    spec: ModelSpec,
    query_maps: Sequence[tuple[HeadMap, HeadMap]],
    merged_keys: Mapping[int, HeadMap] | None = None,
) -> dict[str, Any]:
    """The raw config of a grouped checkpoint.

    Args:
        config: the source's raw `config.json`; it is not changed.
        spec: the source's description.
        query_maps: for each layer of the spec the key head and the value head of every query head, labels 0..n-1.
        merged_keys: for layers that merge keys behind their normalisation, the cached head that each projected one
            goes into.

    Returns:
        A new config: own `model_type`, `architectures` and `auto_map`; what the runtime needs to know in `gqakit`:
        where the attention modules are and the maps of each. In families that have a number of KV heads it is the
        largest, with the layers that differ in `per_layer_config`.

    Raises:
        PlanError: the maps do not fit the config's layers and query heads.
    """
    family = spec.family
    section = {
        "format_version": FORMAT_VERSION,
        "base_model_type": family.model_type,
        "stacks": list(spec.stacks),
        "head_dim": spec.head_dim,
        "projections": _projections(spec),
        "layers": [
            {
                "attention": f"{family.root}.{site.stack.attention(site.index)}".lstrip("."),
                "key_head_of_query": [int(head) for head in key_map],
                "value_head_of_query": [int(head) for head in value_map],
            }
            for site, (key_map, value_map) in zip(spec.sites, query_maps, strict=False)
        ],
    }
    if parts := sorted({site.stack.part for site in spec.sites if site.stack.part}):
        section["parts"] = parts
    for layer, labels in (merged_keys or {}).items():
        section["norms"] = list(spec.norms)
        section["layers"][layer]["merged_keys"] = list(labels)
    try:
        layers = read_layers(section, spec.num_layers, spec.num_heads if len(set(spec.heads)) == 1 else None)
    except ValueError as error:
        raise PlanError(f"the head maps do not fit the model. {error}") from error

    new, name = copy.deepcopy(config), architecture(config)
    new |= {"model_type": f"gqakit_{family.model_type}", "architectures": [f"Gqakit{name}"]}
    new["auto_map"] = auto_map(family, name)
    if family.num_kv_heads is not None:
        num_key_heads = [layer.num_key_heads for layer in layers]
        part = {**family.part(new), family.num_kv_heads: max(num_key_heads)}
        if not family.section or family.section in new:  # a flat multimodal config has no place for it
            _set_per_layer(part, family.num_kv_heads, num_key_heads)
        new = family.with_part(new, part)
    new["gqakit"] = section
    return new


def _projections(spec: ModelSpec) -> dict[str, str]:
    """Names of what shrinks, relative to the module that calls the attention function."""
    stack = spec.sites[0].stack
    names = _below(stack, stack.names)
    if spec.layout != "split":
        return {"fused": names.key}
    gains = {"key_norm": spec.family.key_norm} if spec.gains and spec.family.key_norm else {}
    return {"key": names.key, "value": names.value, **gains}


def _below(stack: Stack, names: Names) -> Names:
    caller = f"{stack.caller}."
    return Names(*(getattr(names, role).removeprefix(caller) for role in ("query", "key", "value", "output")))


def _set_per_layer(config: dict[str, Any], field: str, num_key_heads: list[int]) -> None:
    """Note the layers that differ from the global number of key heads, in transformers' own notation."""
    per_layer = {
        str(int(index)): dict(values) for index, values in config.pop("per_layer_config", {}).items()
    }
    for index, count in enumerate(num_key_heads):
        overrides = per_layer.setdefault(str(index), {})
        overrides.pop(field, None)
        if count != config[field]:
            overrides[field] = count
    per_layer = {index: overrides for index, overrides in per_layer.items() if overrides}
    if per_layer:
        config["per_layer_config"] = per_layer
        # The families' stock code reads the global number while it builds; ours then shrinks each layer.
        config["allow_global_per_layer_attribute_access"] = True
