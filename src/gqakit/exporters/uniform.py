"""A grouped checkpoint written as an ordinary checkpoint of its family: the same number of equal groups everywhere."""

from __future__ import annotations

from typing import Any

from gqakit.errors import FamilyError, UsageError
from gqakit.exporters.rearranged import Rearranged
from gqakit.exporters.source import ExportSource
from gqakit.models.engines import kind_of, names_that_run
from gqakit.models.head_layout import Arrangement, equalise_model, pad_model

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "mixtral")
"""Those for which the result is known to load and to compute the same."""

_GROUPED_KEYS = ("gqakit", "auto_map", "per_layer_config", "allow_global_per_layer_attribute_access")


def describe_uniform(source: ExportSource, how: str = "auto") -> Rearranged:
    """How a grouped checkpoint becomes a stock one.

    Args:
        how: "pad" keeps the KV heads of the layer that has most and pads groups with query heads that nothing reads:
            larger weights. "equalise" pads nothing and writes KV heads again until all groups have one size: a
            larger cache. "auto" is the smaller cache of those that the family can express, then the smaller weights.

    Raises:
        UsageError: the checkpoint is not grouped. FamilyError: no family can express it.
    """
    if not source.spec.is_grouped:
        raise UsageError(
            f"{source.path} is an ordinary {source.family} checkpoint already; nothing to export"
        )
    if source.family not in FAMILIES:
        stays = "Transformers' own code of it runs as many KV heads as query heads, so it stays grouped."
        advice = "Convert its source with `format=uniform`."
        raise FamilyError(
            f"{source.path}: uniform checkpoints are exported of {', '.join(FAMILIES)}; this is a grouped "
            f"{source.family}. {advice if source.spec.family.num_kv_heads else stays}"
        )
    made: list[Rearranged] = []
    problems: list[str] = []
    for name, arrange in (("equalise", equalise_model), ("pad", pad_model)):
        if how in ("auto", name):
            arrangements = arrange(source.heads)
            try:
                made.append(Rearranged("uniform", name, arrangements, *_config(source, arrangements)))
            except FamilyError as error:
                problems.append(f"{name}: {error}")
    if not made:
        raise FamilyError("; ".join(problems))
    return min(made, key=lambda m: (m.arrangements[0].num_kv_heads, m.arrangements[0].num_heads))


def check_saving(source: ExportSource, model: Rearranged) -> None:
    """Raise `UsageError` if the exported checkpoint caches as much as the base model did, or more.

    The number of the base model's KV heads is the plan's. Without a plan beside the checkpoint only what is certain is
    refused: no model has more KV heads than query heads.
    """
    spec, count = source.spec, model.arrangements[0].num_kv_heads
    base = spec.num_heads if source.plan is None else source.plan.source.kv_heads_of(0)
    if count < base:
        return
    before = f"the base model had {base}"
    if source.plan is None:
        before = f"its {base} query heads are the most that the base model can have had"
    per_head = 2 * spec.num_layers * spec.head_dim * spec.element_bytes  # a key and a value in every layer
    advice = ""
    if describe_uniform(source).arrangements[0].num_kv_heads < base:
        advice = "leave out `how`, which finds a smaller cache; or "
    separate = any(heads.key_head_of_query != heads.value_head_of_query for heads in source.heads)
    engines = names_that_run(kind_of("grouped", separate), source.family, tied=spec.tied)
    raise UsageError(
        f"{source.path}: as a uniform checkpoint ({model.how}) every layer has {count} KV heads, "
        f"{count * per_head:,} bytes of KV cache per token; {before}, {base * per_head:,} bytes. All that grouping saved "
        f"(it caches {spec.cache.bytes_per_token:,}) is given back. What else to do: {advice}leave it grouped, for engines "
        f"that run it so ({engines}); or convert the base model with `format=uniform`. To write it all the same: "
        "`allow_full_cache=True`"
    )


def _config(source: ExportSource, arrangements: list[Arrangement]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The stock config and what to know about it."""
    family, heads = source.family, arrangements[0].num_heads
    config = {key: value for key, value in source.config.items() if key not in _GROUPED_KEYS}
    config["model_type"] = family
    config["architectures"] = [
        name.removeprefix("Gqakit") for name in source.config.get("architectures") or []
    ]
    config["num_attention_heads"] = heads
    config["num_key_value_heads"] = arrangements[0].num_kv_heads
    config["head_dim"] = source.spec.head_dim
    if family != "llama" or source.spec.hidden_size % heads == 0:
        return config, ()
    # LlamaConfig refuses this whatever head_dim says; Mistral without a window is the same mathematics.
    biased = [key for key in ("attention_bias", "mlp_bias") if config.pop(key, False)]
    if biased:
        raise FamilyError(
            f"{source.path}: {heads} query heads do not divide the width {source.spec.hidden_size}, as a llama "
            f"must, and a mistral has no biases ({', '.join(biased)} is set)"
        )
    config.pop("pretraining_tp", None)
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
    return config, (
        f"written as a mistral without sliding window, which computes the same: {heads} query heads do not divide the "
        f"width {source.spec.hidden_size}, as transformers asks of a llama",
    )
