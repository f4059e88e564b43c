"""A checkpoint's tensors under their names in GGUF, with attention cut, joined and permuted as the architecture has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor

from gqakit.checkpoint import Replacement
from gqakit.core.attention import Projection
from gqakit.errors import FamilyError
from gqakit.exporters.source import ExportSource, rearrange
from gqakit.models.families.base import ROLES
from gqakit.models.head_layout import Arrangement

INTERLEAVED = {"llama", "deci"}
"""Architectures that rotate neighbouring channels."""

FUSED = {"openelm"}
"""Architectures with one projection for q, k and v, in blocks."""

_GATED = ".mlp.gate_up_proj.weight"  # gate, then up


def gguf_tensors(
    source: ExportSource, arrangements: list[Arrangement], architecture: str
) -> dict[str, Replacement]:
    """Every tensor of the checkpoint under its name in GGUF, in the checkpoint's order: a layer's lie together.

    Raises:
        FamilyError: one has no place there.
    """
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], source.spec.num_layers)
    layer_of = {
        name: layer for layer in range(source.spec.num_layers) for name in _projections(source, layer)
    }

    @lru_cache(maxsize=2)  # a layer's tensors lie together, but two layers may be interleaved in a shard
    def read(layer: int) -> dict[str, Tensor]:
        return _read(source, arrangements[layer], layer, architecture)

    made: dict[str, Replacement] = {}
    strange: list[str] = []
    for name, info in source.checkpoint.tensors.items():
        if name.endswith(".inv_freq") or (
            name == "lm_head.weight" and source.full_config.get("tie_word_embeddings")
        ):
            continue
        if name in layer_of:
            layer = layer_of[name]
            shapes = _shapes(source, arrangements[layer], architecture)
            for part, shape in shapes.items():
                made[f"blk.{layer}.{part}"] = Replacement(shape, None, partial(_one, read, layer, part))
            continue
        load = partial(source.checkpoint.load, name)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            strange.append(name)
        elif name.endswith(_GATED):
            shape = (info.shape[0] // 2, *info.shape[1:])
            for part, at in enumerate(("gate", "up")):
                made[f"{target.rpartition('.ffn_')[0]}.ffn_{at}.weight"] = Replacement(
                    shape, None, partial(_half, load, part)
                )
        else:
            made[target] = Replacement(info.shape, None, load)
    if strange:
        raise FamilyError(
            f"{source.path}: {len(strange)} tensors have no place in GGUF, first {strange[0]!r}."
        )
    return made


def _projections(source: ExportSource, layer: int) -> Iterator[str]:
    """Names of the tensors that become a layer's attention; an output bias stays what it is."""
    spec = source.spec
    for role in ROLES:
        yield spec.tensor(layer, role)
        if role in spec.biased and role != "output":
            yield spec.tensor(layer, role, "bias")


def _shapes(source: ExportSource, arrangement: Arrangement, architecture: str) -> dict[str, tuple[int, ...]]:
    """The projections of a layer."""
    spec = source.spec
    parts = {
        "attn_q": arrangement.num_heads,
        "attn_k": arrangement.num_kv_heads,
        "attn_v": arrangement.num_kv_heads,
    }
    if architecture in FUSED:
        parts = {"attn_qkv": sum(parts.values())}
    shapes = {f"{part}.weight": (count * spec.head_dim, spec.hidden_size) for part, count in parts.items()}
    if "query" in spec.biased:  # then keys and values have one too, in all of these families
        shapes |= {f"{part}.bias": (count * spec.head_dim,) for part, count in parts.items()}
    return {**shapes, "attn_output.weight": (spec.hidden_size, arrangement.num_heads * spec.head_dim)}


def _read(source: ExportSource, arrangement: Arrangement, layer: int, architecture: str) -> dict[str, Tensor]:
    """The tensors of `_shapes`."""
    weights = rearrange(source.layer(layer), arrangement)
    made = {"attn_output.weight": weights.output.movedim(0, 1).flatten(1)}  # [D, heads · d]
    for kind in ("weight", "bias"):
        tensors = {
            part: _rows(projection, kind, permute=part != "v" and architecture in INTERLEAVED)
            for part, projection in (("q", weights.query), ("k", weights.key), ("v", weights.value))
        }
        if architecture in FUSED:
            tensors = {"qkv": torch.cat(list(tensors.values()))}
        made |= {f"attn_{part}.{kind}": tensor for part, tensor in tensors.items()}
    return made


def _one(read: Callable[[int], dict[str, Tensor]], layer: int, part: str) -> Tensor:
    return read(layer)[part].contiguous()


def _rows(projection: Projection, kind: str, *, permute: bool) -> Tensor:
    """`[heads · d, …]`; nothing for a bias that is not there."""
    tensor = projection.weight if kind == "weight" else projection.bias
    if tensor is None:
        return torch.empty(0)
    rows = tensor.flatten(0, 1)
    return interleave(rows, tensor.shape[1]) if permute else rows


def interleave(rows: Tensor, head_dim: int) -> Tensor:
    """Rows of q or k, `[heads * head_dim, …]`, from halves to neighbouring pairs: channel `j` and `j + d/2` of each
    head become `2j` and `2j + 1`.
    """
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])  # [heads, 2, head_dim / 2, …]
    return halves.transpose(1, 2).reshape(rows.shape)


def _half(load: Callable[[], Tensor], part: int) -> Tensor:
    return load().chunk(2)[part]
