"""A multi-head checkpoint whose best conversion is known to cost nothing.

The KV heads of a grouped model are repeated once for each query head, then every copy is turned in a way that
the model does not notice: inside the rotary planes for queries and keys, by any rotation for values. Its
redundancy is planted: call it synthetic wherever it is reported.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from gqakit.checkpoint import Replacement, WriteJob, write_checkpoint
from gqakit.core.attention import AttentionWeights, Projection
from gqakit.models.layers import tensors_of_layer
from gqakit.models.source import Source


def spread_heads(source: Source, out: Path, seed: int = 0) -> Path:
    """Write the synthetic checkpoint made of `source` (no biases) to `out`, replacing an earlier one."""
    shutil.rmtree(out, ignore_errors=True)
    spec = source.spec
    generator = torch.Generator().manual_seed(seed)
    replaced: dict[str, Replacement] = {}
    for layer in range(spec.num_layers):
        spread = _spread(source.layer(layer), generator)
        for name, tensor in tensors_of_layer(spec, layer, spread).items():
            replaced[name] = Replacement(tuple(tensor.shape), None, tensor.clone)
    config = {**source.checkpoint.config, "num_key_value_heads": spec.num_heads}
    write_checkpoint(source.checkpoint, out, WriteJob(replaced, config, {"spread": seed}))
    return out


def _spread(weights: AttentionWeights, generator: torch.Generator) -> AttentionWeights:
    heads, dim = weights.num_heads, weights.key.head_dim
    repeats = heads // weights.num_kv_heads
    angle = torch.rand(heads, dim // 2, generator=generator, dtype=torch.float64) * 6.283185307179586
    cos, sin = angle.cos()[..., None], angle.sin()[..., None]
    random = torch.randn(heads, dim, dim, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(random).Q

    def planes(rows: torch.Tensor) -> torch.Tensor:
        a, b = rows.double().chunk(2, dim=1)
        return torch.cat([cos * a - sin * b, sin * a + cos * b], dim=1).to(rows.dtype)

    key = weights.key.weight.repeat_interleave(repeats, 0)
    value = weights.value.weight.repeat_interleave(repeats, 0)
    return AttentionWeights(
        Projection(planes(weights.query.weight)),
        Projection(planes(key)),
        Projection((turn @ value.double()).to(value.dtype)),
        (weights.output.double() @ turn.mT).to(weights.output.dtype),
    )
