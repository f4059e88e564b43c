"""A checkpoint as GGUF sees it: the architecture that can hold it, hyperparameters, and where each tensor goes.

Facts of llama.cpp that this rests on. `llama` and `deci` rotate neighbouring channels, so rows of q and k are
permuted from the half-split order of transformers; `qwen2` and `qwen3` rotate halves as transformers does. Only
`deci` takes numbers of heads per layer. Every architecture wants groups of one size within a layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gqakit.errors import FamilyError
from gqakit.exporters.source import Source
from gqakit.models.families.base import Role
from gqakit.models.head_layout import Arrangement, pad_layer

STOCK_ARCHITECTURE = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""GGUF architecture of each family with equal groups that are the same in all layers."""

PER_LAYER_ARCHITECTURE = {"llama": "deci", "mistral": "deci", "qwen2": "deci"}
"""And otherwise. `deci` takes the biases of qwen2; it has no key normalisation, which qwen3 needs."""

INTERLEAVED = {"llama", "deci"}

_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INSIDE = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file: name, shape (outermost first), and what makes it when its bytes are due."""

    name: str
    shape: tuple[int, ...]
    produce: Callable[[], Tensor]


@dataclass(frozen=True)
class GgufModel:
    """The whole file but the tokenizer.

    Attributes:
        architecture: `general.architecture`.
        arrangements: the heads of each layer.
        numbers: hyperparameters by key without the architecture's prefix.
        tensors: in file order.
        notes: what the user should know.
    """

    architecture: str
    arrangements: list[Arrangement]
    numbers: dict[str, Any]
    tensors: list[GgufTensor]
    notes: tuple[str, ...]


def describe_gguf(source: Source) -> GgufModel:
    """How a checkpoint is written.

    Raises:
        FamilyError: llama.cpp has no architecture that computes the same, or the checkpoint has tensors or settings
            that none of them knows.
    """
    arrangements = [pad_layer(heads) for heads in source.heads]
    architecture = _architecture(source, arrangements)
    notes: list[str] = []
    numbers = _numbers(source, architecture, arrangements, notes)
    rope, frequencies = _rope(source)
    tensors = _tensors(source, arrangements, architecture in INTERLEAVED)
    if frequencies is not None:
        values = frequencies
        tensors.insert(0, GgufTensor("rope_freqs.weight", tuple(values.shape), lambda: values))
    return GgufModel(architecture, arrangements, {**numbers, **rope}, tensors, tuple(notes))


def _architecture(source: Source, arrangements: list[Arrangement]) -> str:
    family = source.family
    counts = {(a.num_heads, a.num_kv_heads) for a in arrangements}
    alike = len(counts) == 1 and not any(a.is_padded for a in arrangements)
    table = STOCK_ARCHITECTURE if alike else PER_LAYER_ARCHITECTURE
    if family in table and source.config.get("hidden_act", "silu") == "silu":
        return table[family]
    if family in STOCK_ARCHITECTURE and not alike:
        raise FamilyError(
            f"{source.checkpoint.path}: a grouped {family} has no architecture in GGUF: the only one with heads per layer, "
            "deci, has no key normalisation. Give it the same heads in every layer with `gqakit export … --to uniform`, "
            "which costs cache or weights, and export that; or convert with --format uniform."
        )
    raise FamilyError(
        f"{source.checkpoint.path}: GGUF is written for {', '.join(STOCK_ARCHITECTURE)} with hidden_act silu; this is "
        f"{family} with {source.config.get('hidden_act')}."
    )


def _numbers(
    source: Source, architecture: str, arrangements: list[Arrangement], notes: list[str]
) -> dict[str, Any]:
    config = source.config
    per_layer = architecture == "deci"
    heads = [a.num_heads for a in arrangements]
    kv_heads = [a.num_kv_heads for a in arrangements]
    context = int(config.get("max_position_embeddings") or 2048)
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window and window < context:
        notes.append(
            f"the sliding window of {window:,} becomes the context length: up to there it is full attention"
        )
        context = window
    return {
        "vocab_size": int(config["vocab_size"]),
        "context_length": context,
        "embedding_length": source.spec.hidden_size,
        "block_count": source.spec.num_layers,
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": heads if per_layer else heads[0],
        "attention.head_count_kv": kv_heads if per_layer else kv_heads[0],
        "attention.key_length": source.spec.head_dim,
        "attention.value_length": source.spec.head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": source.spec.head_dim,
    }


def _rope(source: Source) -> tuple[dict[str, Any], Tensor | None]:
    """The rotary embedding's keys and, for Llama 3's scaling, a divisor of every frequency."""
    config = source.config
    scaling = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    base = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    keys: dict[str, Any] = {"rope.freq_base": base}
    if float(scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
        kind = "partial"
    if kind == "linear":
        return keys | {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}, None
    if kind == "llama3":
        return keys, llama3_divisors(source.spec.head_dim, base, scaling)
    if kind != "default":
        raise FamilyError(
            f"{source.checkpoint.path}: rotary embedding of type {kind!r}; GGUF is written for default, linear and "
            "llama3."
        )
    return keys, None


def llama3_divisors(head_dim: int, base: float, scaling: dict[str, Any]) -> Tensor:
    """`[head_dim / 2]`: by what Llama 3's scaling divides each rotary frequency.

    1 for wavelengths below `original / high`, `factor` for those above `original / low`, and between them the
    frequency is interpolated linearly.
    """
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(scaling["original_max_position_embeddings"])
    divisors = []
    for channel in range(0, head_dim, 2):
        turns = original / (2 * math.pi * base ** (channel / head_dim))  # within the original context
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - share) / factor + share))
    return torch.tensor(divisors, dtype=torch.float32)


def interleave(rows: Tensor, head_dim: int) -> Tensor:
    """Rows of q or k, `[heads * head_dim, …]`, from halves to neighbouring pairs: channel `j` and `j + d/2` of each
    head become `2j` and `2j + 1`.
    """
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _tensors(source: Source, arrangements: list[Arrangement], interleaved: bool) -> list[GgufTensor]:
    checkpoint = source.checkpoint
    layers = _Layers(source, arrangements, interleaved)
    attention = {
        f"{projection}.{part}"
        for projection in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
        for part in ("weight", "bias")
    }
    outside: list[GgufTensor] = []
    inside: list[list[GgufTensor]] = [layers.tensors(i) for i in range(source.spec.num_layers)]
    strange: list[str] = []
    for name, info in checkpoint.tensors.items():
        matched = _LAYER.fullmatch(name)

        def produce(name: str = name) -> Tensor:
            return checkpoint.load(name)

        if name == "lm_head.weight" and checkpoint.config.get("tie_word_embeddings"):
            continue
        if name in _OUTSIDE:
            outside.append(GgufTensor(_OUTSIDE[name], info.shape, produce))
        elif matched and matched[2] in _INSIDE and int(matched[1]) < len(inside):
            target = f"blk.{matched[1]}.{_INSIDE[matched[2]]}.{matched[3]}"
            inside[int(matched[1])].append(GgufTensor(target, info.shape, produce))
        elif matched and f"{matched[2]}.{matched[3]}" == "self_attn.o_proj.bias":
            inside[int(matched[1])].append(
                GgufTensor(f"blk.{matched[1]}.attn_output.bias", info.shape, produce)
            )
        elif not (matched and f"{matched[2]}.{matched[3]}" in attention) and not name.endswith(".inv_freq"):
            strange.append(name)
    if strange:
        raise FamilyError(
            f"{checkpoint.path}: {len(strange)} tensors have no place in GGUF, first {strange[0]!r}."
        )
    return outside + [tensor for layer in inside for tensor in layer]


class _Layers:
    """Attention tensors layer by layer; only the last layer asked for is kept."""

    def __init__(self, source: Source, arrangements: list[Arrangement], interleaved: bool) -> None:
        self.source, self.arrangements, self.interleaved = source, arrangements, interleaved
        self.read = lru_cache(maxsize=1)(self._read)

    def tensors(self, layer: int) -> list[GgufTensor]:
        """Names and shapes of a layer's attention tensors; no weight is read."""
        spec = self.source.spec
        places: dict[str, Role] = {
            "attn_q": "query",
            "attn_k": "key",
            "attn_v": "value",
            "attn_output": "output",
        }
        given = self.source.shapes(layer, self.arrangements[layer])
        shapes = {
            f"{name}.{part}": given[stored]
            for name, role in places.items()
            for part in ("weight", "bias")
            if (stored := spec.tensor(layer, role, part)) in given
        }
        return [
            GgufTensor(f"blk.{layer}.{name}", shape, lambda name=name: self.read(layer)[name])
            for name, shape in shapes.items()
        ]

    def _read(self, layer: int) -> dict[str, Tensor]:
        weights = self.source.layer(layer, self.arrangements[layer])
        made: dict[str, Tensor] = {"attn_output.weight": weights.output.movedim(0, 1).flatten(1).contiguous()}
        for name, projection in (
            ("attn_q", weights.query),
            ("attn_k", weights.key),
            ("attn_v", weights.value),
        ):
            rotated = self.interleaved and name != "attn_v"
            for part, tensor in (("weight", projection.weight), ("bias", projection.bias)):
                if tensor is not None:
                    rows = tensor.flatten(0, 1)
                    rows = interleave(rows, self.source.spec.head_dim) if rotated else rows
                    made[f"{name}.{part}"] = rows.contiguous()
        return made
