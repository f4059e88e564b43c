"""One attention layer out of a checkpoint's tensors, and back into them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gqakit.core.attention import AttentionWeights, Projection
from gqakit.errors import CheckpointError
from gqakit.families.spec import ModelSpec


def read_layer(spec: ModelSpec, layer: int, load: Callable[[str], Tensor]) -> AttentionWeights:
    """The four projections of a layer, cut into heads, in the checkpoint's precision.

    Args:
        spec: the checkpoint.
        layer: its index.
        load: gives a tensor by name.

    Raises:
        CheckpointError: when a weight is not finite; names the tensor.
    """
    family = spec.family

    def fetch(name: str) -> Tensor:
        tensor = load(name)
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            bad = int((~finite).sum())
            raise CheckpointError(
                f"{name} holds {bad} values that are NaN or infinite, of {tensor.numel()}; "
                "the checkpoint is damaged or its training diverged"
            )
        return tensor

    def project(name: str) -> Projection:
        weight = fetch(family.weight(layer, name))
        bias = fetch(family.bias(layer, name)) if name in spec.biased else None
        shape = (-1, spec.head_dim)
        return Projection(weight.unflatten(0, shape), None if bias is None else bias.unflatten(0, shape))

    output = fetch(family.weight(layer, family.output)).unflatten(1, (-1, spec.head_dim)).movedim(1, 0)
    return AttentionWeights(project(family.query), project(family.key), project(family.value), output)


def tensors_of_layer(spec: ModelSpec, layer: int, weights: AttentionWeights) -> dict[str, Tensor]:
    """The inverse of `read_layer`: tensors by name, contiguous."""
    family = spec.family
    tensors: dict[str, Tensor] = {}
    for name, projection in (
        (family.query, weights.query),
        (family.key, weights.key),
        (family.value, weights.value),
    ):
        tensors[family.weight(layer, name)] = projection.weight.flatten(0, 1).contiguous()
        if projection.bias is not None:
            tensors[family.bias(layer, name)] = projection.bias.flatten(0, 1).contiguous()
    tensors[family.weight(layer, family.output)] = weights.output.movedim(0, 1).flatten(1).contiguous()
    return tensors
