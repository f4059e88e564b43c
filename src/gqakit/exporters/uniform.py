"""A grouped checkpoint written as an ordinary checkpoint of its family: the same number of equal groups everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from gqakit.checkpoint import Replacement, WriteJob, WriteResult, write_checkpoint
from gqakit.errors import FamilyError, UsageError, unknown_name
from gqakit.exporters.source import Source
from gqakit.models.head_layout import Arrangement, equalise_model, pad_model
from gqakit.models.layers import tensors_of_layer
from gqakit.progress import Advance

HOWS = ("auto", "pad", "equalise")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Those for which the result is known to load and to compute the same."""

_GROUPED_KEYS = ("gqakit", "auto_map", "per_layer_config", "allow_global_per_layer_attribute_access")


@dataclass(frozen=True)
class UniformModel:
    """What is written: `how` it was made possible, the heads of each layer, the new config, and what to know."""

    how: str
    arrangements: list[Arrangement]
    config: dict[str, Any]
    notes: tuple[str, ...]


def describe_uniform(source: Source, how: str = "auto") -> UniformModel:
    """How a grouped checkpoint becomes a stock one.

    Args:
        how: "pad" keeps the KV heads of the layer that has most and pads groups with query heads that nothing reads:
            larger weights. "equalise" pads nothing and writes KV heads again until all groups have one size: a
            larger cache. "auto" is the smaller cache of those that the family can express, then the smaller weights.

    Raises:
        UsageError: the checkpoint is not grouped, or `how` is not known. FamilyError: no family can express it.
    """
    if how not in HOWS:
        raise unknown_name("way", how, HOWS)
    if not source.spec.is_grouped:
        raise UsageError(
            f"{source.checkpoint.path} is an ordinary {source.family} checkpoint already; nothing to export"
        )
    if source.family not in FAMILIES:
        raise FamilyError(
            f"{source.checkpoint.path}: uniform checkpoints are exported of {', '.join(FAMILIES)}; this is a grouped "
            f"{source.family}. Convert its source with --format uniform, where `gqakit inspect` lists it."
        )
    made: list[UniformModel] = []
    problems: list[str] = []
    for name, arrangements in (
        ("equalise", equalise_model(source.heads)),
        ("pad", pad_model(source.heads)),
    ):
        if how in ("auto", name):
            try:
                made.append(UniformModel(name, arrangements, *_config(source, arrangements)))
            except FamilyError as error:
                problems.append(f"{name}: {error}")
    if not made:
        raise FamilyError("; ".join(problems))
    return min(made, key=lambda m: (m.arrangements[0].num_kv_heads, m.arrangements[0].num_heads))


def write_uniform(
    source: Source, model: UniformModel, out: Path, card: str, *, overwrite: bool, advance: Advance
) -> WriteResult:
    """Write the checkpoint, tensor by tensor; interrupted, the same call goes on.

    Raises:
        OutputError, CheckpointError: see `gqakit.checkpoint.write_checkpoint`.
    """

    @lru_cache(maxsize=2)  # two layers may be interleaved in a shard
    def rearranged(layer: int) -> dict[str, Tensor]:
        return tensors_of_layer(source.spec, layer, source.layer(layer, model.arrangements[layer]))

    replaced: dict[str, Replacement] = {}
    for layer, arrangement in enumerate(model.arrangements):
        if not arrangement.is_identity:
            for name, shape in source.shapes(layer, arrangement).items():
                replaced[name] = Replacement(shape, None, _produce(rearranged, layer, name))
    return write_checkpoint(
        source.checkpoint,
        out,
        WriteJob(
            replaced=replaced,
            config=model.config,
            decides={"export": "uniform", "how": model.how},
            extra_files={"README.md": card.encode()},
            skip_files=lambda name: name.endswith("_gqakit.py"),
        ),
        overwrite=overwrite,
        progress=advance,
    )


def _produce(rearranged: Callable[[int], dict[str, Tensor]], layer: int, name: str) -> Callable[[], Tensor]:
    return lambda: rearranged(layer)[name]


def _config(source: Source, arrangements: list[Arrangement]) -> tuple[dict[str, Any], tuple[str, ...]]:
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
            f"{source.checkpoint.path}: {heads} query heads do not divide the width {source.spec.hidden_size}, as a llama "
            f"must, and a mistral has no biases ({', '.join(biased)} is set)"
        )
    config.pop("pretraining_tp", None)
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
    return config, (
        f"written as a mistral without sliding window, which computes the same: {heads} query heads do not divide the "
        f"width {source.spec.hidden_size}, as transformers asks of a llama",
    )
