"""One attention layer out of a checkpoint's tensors, and back into them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gqakit.core.attention import AttentionWeights, NormMaps, Projection
from gqakit.errors import CheckpointError
from gqakit.models.families.base import Layout, Role
from gqakit.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_QKV: tuple[Role, ...] = ("query", "key", "value")


def _finite(name: str, tensor: Tensor) -> Tensor:
    """The tensor; raises `CheckpointError` unless all of it is finite."""
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise CheckpointError(
            f"{name} holds {bad} values that are NaN or infinite, of {tensor.numel()}; "
            "the checkpoint is damaged or its training diverged"
        )
    return tensor


def read_layer(spec: ModelSpec, layer: int, load: Callable[[str], Tensor]) -> AttentionWeights:
    """The four projections of a layer, cut into heads, in the checkpoint's precision.

    Args:
        spec: the checkpoint.
        layer: its index.
        load: gives a tensor by name.

    Raises:
        CheckpointError: when a weight is not finite; names the tensor.
    """

    def fetch(name: str) -> Tensor:
        return _finite(name, load(name))

    def rows(role: Role) -> Tensor:
        """A projection with its outputs as rows."""
        weight = fetch(spec.tensor(layer, role))
        return weight.T if spec.family.transposed else weight

    def heads(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (-1, spec.head_dim))  # [heads · d, ...] to [heads, d, ...]

    def bias(role: Role) -> Tensor | None:
        return heads(fetch(spec.tensor(layer, role, "bias"))) if role in spec.biased else None

    if spec.layout == "split":
        weights, biases = [heads(rows(role)) for role in _QKV], [bias(role) for role in _QKV]
    else:
        counts = (spec.heads[layer], spec.key_heads[layer], spec.value_heads[layer])
        weights = _cut(heads(rows("query")), counts, spec.layout)
        fused = bias("query")
        biases = [None] * 3 if fused is None else _cut(fused, counts, spec.layout)
    counts = spec.heads[layer], spec.projected_heads[layer] or spec.key_heads[layer]
    gains = [
        torch.cat([fetch(name).flatten() for name in gain_shapes(spec, layer, norm, count)])
        for norm, count in zip(spec.gain_norms, counts, strict=True)
        if norm
    ]
    # [hidden size, heads · d] to [heads, hidden size, d]
    output = rows("output").unflatten(1, (-1, spec.head_dim)).movedim(1, 0)
    query, key, value = map(Projection, weights, biases)
    if gains:
        alone = spec.gains != "together"
        query, key = (
            replace(part, gain=heads(gain), each_alone=alone)
            for part, gain in zip((query, key), gains, strict=True)
        )
    maps = None
    if spec.projected_heads[layer] is not None:
        of_query, of_key = (fetch(spec.maps(layer, norm)) for norm in spec.norms)
        maps = NormMaps(of_key, of_query)
    sinks = fetch(spec.sinks(layer)) if spec.family.sinks else None
    return AttentionWeights(query, key, value, output, maps, sinks)


def heads_of_output(spec: ModelSpec, layer: int, output: Tensor, role: Role) -> Tensor:
    """What a projection of a running model puts out, `[B, T, rows]`, as `[B, T, heads, head_dim]` of one role.

    A fused projection puts out all three.
    """
    heads = output.movedim(-1, 0).unflatten(0, (-1, spec.head_dim))  # [heads, d, B, T]
    if spec.layout != "split":
        counts = (spec.num_heads, spec.key_heads[layer], spec.value_heads[layer])
        heads = _cut(heads, counts, spec.layout)[_QKV.index(role)]
    return heads.permute(2, 3, 0, 1)


def tensors_of_layer(
    spec: ModelSpec, layer: int, weights: AttentionWeights, layout: Layout | None = None
) -> dict[str, Tensor]:
    """The inverse of `read_layer`: tensors by name, contiguous.

    Args:
        spec: the source checkpoint.
        layer: its index.
        weights: what the layer is to have; its numbers of heads may be others than the source's.
        layout: how q, k and v are to lie in a fused tensor; None as in the source.
    """
    layout = layout or spec.layout
    parts = (weights.query, weights.key, weights.value)
    tensors: dict[str, Tensor] = {}

    def put(name: str, rows: Tensor) -> None:
        tensors[name] = (rows.T if spec.family.transposed and rows.ndim == 2 else rows).contiguous()

    if layout == "split":
        for role, part in zip(_QKV, parts, strict=True):
            put(spec.tensor(layer, role), part.weight.flatten(0, 1))
            if part.bias is not None:
                put(spec.tensor(layer, role, "bias"), part.bias.flatten(0, 1))
    else:
        put(spec.tensor(layer, "query"), _join([part.weight for part in parts], layout))
        biases = [part.bias for part in parts if part.bias is not None]
        if biases:
            put(spec.tensor(layer, "query", "bias"), _join(biases, layout))
    for part, norm in zip((weights.query, weights.key), spec.gain_norms, strict=True):
        if part.gain is not None:
            shapes = gain_shapes(spec, layer, norm, part.num_heads)
            pieces = part.gain.chunk(len(shapes))  # [heads of a tensor, d] each
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True):
                tensors[name] = piece.reshape(shape).contiguous()
    if weights.maps is not None:
        of_query, of_key = (spec.maps(layer, norm) for norm in spec.norms)
        tensors |= {of_query: weights.maps.query.contiguous(), of_key: weights.maps.key.contiguous()}
    if weights.sinks is not None:
        tensors[spec.sinks(layer)] = weights.sinks.contiguous()
    put(spec.tensor(layer, "output"), weights.output.movedim(0, 1).flatten(1))
    return tensors


def layer_shapes(
    spec: ModelSpec, layer: int, key_heads: int, value_heads: int, projected_heads: int | None = None
) -> dict[str, tuple[int, ...]]:
    """The shapes of `tensors_of_layer` for a layer with these numbers of heads.

    Args:
        spec: the source checkpoint. layer: its index.
        key_heads, value_heads: that are cached.
        projected_heads: keys that are made, where maps behind a normalisation merge them into `key_heads`.
    """
    key_heads = projected_heads or key_heads
    counts = dict(zip(_QKV, (spec.heads[layer], key_heads, value_heads), strict=True))
    rows = {spec.tensor(layer, role): count * spec.head_dim for role, count in counts.items()}
    if spec.layout != "split":
        rows = {spec.tensor(layer, "query"): sum(counts.values()) * spec.head_dim}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, count in rows.items():
        shapes[name] = _oriented(spec, (count, spec.widths[layer]))
        if any(spec.tensor(layer, role) == name for role in spec.biased):
            shapes[name.removesuffix("weight") + "bias"] = (count,)
    for norm, count in zip(spec.gain_norms, (spec.heads[layer], key_heads), strict=True):
        shapes |= gain_shapes(spec, layer, norm, count) if norm else {}
    if projected_heads is not None:
        for norm, count in zip(spec.norms, (spec.heads[layer], projected_heads), strict=True):
            shapes[spec.maps(layer, norm)] = (count, spec.head_dim, spec.head_dim)
    if spec.family.sinks:
        shapes[spec.sinks(layer)] = (spec.heads[layer],)
    output = (spec.widths[layer], spec.heads[layer] * spec.head_dim)
    shapes[spec.tensor(layer, "output")] = _oriented(spec, output)
    return shapes


def gain_shapes(spec: ModelSpec, layer: int, norm: str, count: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a normalisation that has gains for `count` heads, with their shapes."""
    if spec.gains == "apart":
        return {spec.gain(layer, norm, f"norms.{head}.weight"): (spec.head_dim,) for head in range(count)}
    shape = (count, spec.head_dim) if spec.gains == "each" else (count * spec.head_dim,)
    return {spec.gain(layer, norm): shape}


def projection_tensors(spec: ModelSpec) -> set[str]:
    """Names of the weights and biases of queries, keys, values and output of all layers."""
    layers, kinds = range(spec.num_layers), ("weight", "bias")
    return {
        spec.tensor(layer, role, kind) for layer in layers for role in (*_QKV, "output") for kind in kinds
    }


def parameters_of_layer(spec: ModelSpec, model: PreTrainedModel, layer: int) -> dict[str, nn.Parameter]:
    """A loaded model's parameters by the names of `tensors_of_layer`; paths in a model may differ from those."""
    found: dict[str, nn.Parameter] = {}
    for role in (*_QKV, "output"):
        module = spec.projection(model, layer, role)
        found[spec.tensor(layer, role)] = module.get_parameter("weight")
        if role in spec.biased and role != "output":
            found[spec.tensor(layer, role, "bias")] = module.get_parameter("bias")
    for norm in filter(None, spec.gain_norms):
        for name, parameter in spec.norm(model, layer, norm).named_parameters():
            found[spec.gain(layer, norm, name)] = parameter
    if spec.family.sinks:
        found[spec.sinks(layer)] = spec.home(model, layer).get_parameter(spec.family.sinks)
    return found


def _oriented(spec: ModelSpec, shape: tuple[int, int]) -> tuple[int, ...]:
    return shape[::-1] if spec.family.transposed else shape


def _cut(fused: Tensor, counts: tuple[int, int, int], layout: Layout) -> list[Tensor]:
    """`[heads of q, k and v, ...]` into the three, each with its heads in order."""
    if layout == "blocks":
        return list(fused.split(counts))
    if layout == "quarters":
        parts = fused.unflatten(0, (4, 3, -1))  # [quarters, q v k, heads of a quarter, d, ...]
        return [parts[:, which].flatten(0, 1) for which in (0, 2, 1)]
    num_heads, kv_heads, _ = counts
    # For each KV head in turn its queries, its key, its value: [KV heads, queries of a head + 2, d, ...].
    turns = fused.unflatten(0, (kv_heads, num_heads // kv_heads + 2))
    return [turns[:, :-2].flatten(0, 1), turns[:, -2], turns[:, -1]]


def _join(parts: list[Tensor], layout: Layout) -> Tensor:
    """The inverse of `_cut`, with heads and channels flattened into rows."""
    if layout == "interleaved":
        query, key, value = parts
        turns = query.unflatten(0, (key.shape[0], -1))  # [KV heads, queries of a head, d, ...]
        parts = [torch.cat([turns, key.unsqueeze(1), value.unsqueeze(1)], dim=1).flatten(0, 1)]
    if layout == "quarters":
        query, key, value = (part.unflatten(0, (4, -1)) for part in parts)
        parts = [torch.stack([query, value, key], dim=1).flatten(0, 2)]
    return torch.cat([part.flatten(0, 1) for part in parts])
