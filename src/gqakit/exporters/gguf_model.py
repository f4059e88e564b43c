"""A checkpoint as GGUF sees it: the architecture that can hold it, hyperparameters, and where each tensor goes.

Facts of llama.cpp that this rests on. `llama` and `deci` rotate neighbouring channels, so rows of q and k are
permuted from the half-split order of transformers; `qwen2`, `qwen3` and `openelm` rotate halves as transformers does.
Only `deci` and `openelm` take numbers of heads per layer: `deci` is Llama with any biases, `openelm` has Qwen3's
normalisation of queries and keys, but no output matrix of its own. Neither has experts, so a grouped mixtral has none.
Every architecture wants groups of one size within a layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gqakit.checkpoint import Replacement
from gqakit.errors import FamilyError
from gqakit.exporters.gguf_tensors import gguf_tensors
from gqakit.exporters.model_card import lineage
from gqakit.exporters.source import ExportSource
from gqakit.models.head_layout import Arrangement, pad_layer

if TYPE_CHECKING:
    from gguf import GGUFWriter

STOCK_ARCHITECTURE = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "llama",
}
"""GGUF architecture of each family with equal groups that are the same in all layers."""

PER_LAYER_ARCHITECTURE = {
    "llama": "deci",
    "mistral": "deci",
    "qwen2": "deci",
    "phi3": "deci",
    "qwen3": "openelm",
}
"""And otherwise. A phi3 is a llama once its fused projections are cut."""


@dataclass(frozen=True)
class GgufModel:
    """The whole file but the tokenizer.

    Attributes:
        arrangements: the heads of each layer.
        writer: holds architecture and metadata; no file is open yet.
        tensors: by name, in file order; shapes have the outermost axis first.
        notes: what the user should know.
    """

    arrangements: list[Arrangement]
    writer: GGUFWriter
    tensors: dict[str, Replacement]
    notes: tuple[str, ...]


def describe_gguf(source: ExportSource) -> GgufModel:
    """How a checkpoint is written.

    Raises:
        FamilyError: llama.cpp has no architecture that computes the same, or the checkpoint has tensors or settings
            that none of them knows.
    """
    import gguf

    source.check_causal("llama.cpp")
    arrangements = [pad_layer(heads) for heads in source.heads]
    architecture = _architecture(source, arrangements)
    writer = gguf.GGUFWriter(path=None, arch=architecture)
    _add_origin(writer, source)
    notes = _add_numbers(writer, source, arrangements)
    frequencies = _add_rope(writer, source)
    tensors = gguf_tensors(source, arrangements, architecture)
    if frequencies is not None:
        tensors["rope_freqs.weight"] = Replacement(tuple(frequencies.shape), None, frequencies.clone)
    return GgufModel(arrangements, writer, tensors, notes)


def _architecture(source: ExportSource, arrangements: list[Arrangement]) -> str:
    family = source.family
    counts = {(a.num_heads, a.num_kv_heads) for a in arrangements}
    alike = len(counts) == 1 and not any(a.is_padded for a in arrangements)
    table = STOCK_ARCHITECTURE if alike else PER_LAYER_ARCHITECTURE
    if family not in table or source.full_config.get("hidden_act", "silu") != "silu":
        activation = f" with {source.full_config.get('hidden_act')}" if family in table else ""
        raise FamilyError(
            f"{source.path}: GGUF is written for {', '.join(STOCK_ARCHITECTURE)} with hidden_act silu; this is "
            f"{family}{activation}."
        )
    if table[family] == "openelm" and not source.full_config.get("tie_word_embeddings"):
        raise FamilyError(
            f"{source.path}: a grouped {family} goes into GGUF as openelm, which has no output matrix beside the "
            "embeddings, and this one has. Give it the same heads in every layer by an export with `to=uniform`, which "
            "costs cache or weights, and export that; or convert with `format=uniform`."
        )
    return table[family]


def _add_origin(writer: GGUFWriter, source: ExportSource) -> None:
    """`general.*`: name, licence and base model, spelled as llama.cpp's own converter spells them."""
    from gguf import Metadata

    metadata = Metadata.apply_metadata_heuristic(Metadata(), lineage(source))
    metadata.name = source.short_name
    metadata.set_gguf_meta_model(writer)
    writer.add_type("model")


def _add_numbers(
    writer: GGUFWriter, source: ExportSource, arrangements: list[Arrangement]
) -> tuple[str, ...]:
    """The hyperparameters but the rotary embedding's; returns notes."""
    config, spec = source.full_config, source.spec
    notes: tuple[str, ...] = ()
    context = int(config.get("max_position_embeddings") or 2048)
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window and window < context:
        notes = (
            f"the sliding window of {window:,} becomes the context length: up to there it is full attention",
        )
        context = window
    heads = [a.num_heads for a in arrangements]
    kv_heads = [a.num_kv_heads for a in arrangements]
    per_layer = writer.arch in PER_LAYER_ARCHITECTURE.values()
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(context)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(spec.num_layers)
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads if per_layer else heads[0])
    writer.add_head_count_kv(kv_heads if per_layer else kv_heads[0])
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_rope_dimension_count(spec.head_dim)
    return notes


def _add_rope(writer: GGUFWriter, source: ExportSource) -> Tensor | None:
    """The rotary embedding's keys; for Llama 3's scaling returns a divisor of every frequency."""
    import gguf

    config = source.full_config
    scaling = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    base = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if float(scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
        kind = "partial"
    if kind not in ("default", "linear", "llama3") or (kind != "default" and writer.arch == "openelm"):
        raise FamilyError(
            f"{source.path}: rotary embedding of type {kind!r}; GGUF is written for default, linear and "
            "llama3, a grouped qwen3 for default alone."
        )
    writer.add_rope_freq_base(base)
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    return llama3_divisors(source.spec.head_dim, base, scaling) if kind == "llama3" else None


def llama3_divisors(head_dim: int, base: float, scaling: dict[str, Any]) -> Tensor:
    """`[head_dim / 2]`: by what Llama 3's scaling divides each rotary frequency.

    1 for wavelengths below `original / high`, `factor` for those above `original / low`, and between them the
    frequency is interpolated linearly.
    """
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    # The turns that each frequency makes within the original context.
    turns = original / (2 * math.pi * base ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim))
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - share) / factor + share)).float()
