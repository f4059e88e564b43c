"""A grouped checkpoint in DeciLM's form, `nemotron-nas`: each layer states its own number of query heads per KV head.

Source: NVIDIA's Llama-Nemotron checkpoints, whose `block_configs` MLX-LM, TensorRT-LLM, vLLM and llama.cpp's converter read.
Tensors have Llama's names. What the form cannot say is refused: groups of several sizes in a layer, head widths other than
width / heads, feed-forward widths that are no multiple of 256.
"""

from __future__ import annotations

from typing import Any

from gqakit.errors import FamilyError, UsageError
from gqakit.exporters.rearranged import Rearranged
from gqakit.exporters.source import ExportSource
from gqakit.models.engines import ENGINES
from gqakit.models.head_layout import Arrangement, equalise_layer

FAMILIES = ("llama", "mistral")
"""Those whose layers are DeciLM's: Llama's names, no bias of one projection alone, no norm of queries and keys."""

WIDTH_STEP = 256
"""Engines round feed-forward widths up to a multiple of this."""

_GIVEN = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps", "hidden_act"),
    *("max_position_embeddings", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id"),
)
"""What both configs call alike."""


def describe_nas(source: ExportSource, *, allow_full_cache: bool = False) -> Rearranged:
    """How a grouped checkpoint becomes a `nemotron-nas` one.

    Layers whose groups have several sizes get KV heads written again until they have one: a larger cache.

    Args:
        allow_full_cache: write it even if that gives back all that grouping saved.

    Raises:
        UsageError: the checkpoint is not grouped, or all saving would be given back. FamilyError: the form cannot say it.
    """
    spec = source.spec
    if not spec.is_grouped:
        raise UsageError(
            f"{source.path} is an ordinary {source.family} checkpoint, which these engines run as it is"
        )
    if source.family not in FAMILIES:
        gguf = ENGINES["llama.cpp"].how("grouped", source.family, tied=spec.tied)
        raise FamilyError(
            f"{source.path}: nemotron-nas has Llama's layers; this is a grouped {source.family}, and what can be written so "
            f"is {', '.join(FAMILIES)}.{' For llama.cpp use `to=gguf`.' if gguf else ''}"
        )
    source.check_causal("nemotron-nas")
    arrangements = [equalise_layer(heads) for heads in source.heads]
    written = sum(arrangement.num_kv_heads for arrangement in arrangements)
    planned = None if source.plan is None else source.plan.source
    before = sum(spec.heads if planned is None else map(planned.kv_heads_of, range(spec.num_layers)))
    if written >= before and not allow_full_cache:
        raise UsageError(
            f"{source.path}: with groups of one size per layer it has {written:,} KV heads in all, and the base model had "
            f"{before:,}: all that grouping saved is given back. Convert with `engine=nemotron-nas`, which makes groups of "
            "one size; or write it all the same with `allow_full_cache=True`"
        )
    kept = sum(len(set(heads.key_head_of_query)) for heads in source.heads)
    cut = f"KV heads were written again to make groups of one size: {kept:,} → {written:,} in all"
    notes = (*((cut,) if written > kept else ()), "checked in MLX-LM; vLLM and TensorRT-LLM were not run")
    return Rearranged("nemotron-nas", "", arrangements, _config(source, arrangements), notes)


def _config(source: ExportSource, arrangements: list[Arrangement]) -> dict[str, Any]:
    config, spec = source.full_config, source.spec
    problems = list(_not_said(source, config))
    if problems:
        raise FamilyError(f"{source.path}: nemotron-nas cannot say {'; '.join(problems)}")
    multiple = 3 * config["intermediate_size"] / (2 * spec.hidden_size)
    blocks = [
        {
            "attention": {
                "n_heads_in_group": arrangement.num_heads // arrangement.num_kv_heads,
                "no_op": False, "replace_with_linear": False, "sparsify": None,
            },
            "ffn": {"ffn_mult": multiple, "no_op": False, "replace_with_linear": False, "sparsify": None},
        }
        for arrangement in arrangements
    ]  # fmt: skip
    rope = _rope(config)
    return {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        **{name: config[name] for name in _GIVEN if config.get(name) is not None},
        "attention_bias": bool(config.get("attention_bias", False)),
        "mlp_bias": bool(config.get("mlp_bias", False)),
        "rope_theta": rope.pop("rope_theta", 10000.0),
        "rope_scaling": rope if rope.get("rope_type", "default") != "default" else None,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "torch_dtype": config.get("dtype") or config.get("torch_dtype"),
        "num_key_value_heads": None,
        "intermediate_size": None,
        "block_configs": blocks,
    }


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Type, base and factors of the rotary embedding, from transformers' new or old keys."""
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    given.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return given


def _not_said(source: ExportSource, config: dict[str, Any]) -> list[str]:
    """What the checkpoint has that the form has no place for."""
    spec, width = source.spec, config["intermediate_size"]
    found = []
    if spec.head_dim * spec.num_heads != spec.hidden_size:
        found.append(
            f"heads of width {spec.head_dim}, as it takes width / heads, {spec.hidden_size} / {spec.num_heads}"
        )
    if width % WIDTH_STEP:
        found.append(f"a feed-forward width of {width}, which engines round up to a multiple of {WIDTH_STEP}")
    if config.get("sliding_window"):
        found.append(f"a sliding window (sliding_window is {config['sliding_window']})")
    return found
