"""What is exported: an opened checkpoint, what each query head of it reads, and its layers rearranged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gqakit.checkpoint import Checkpoint
from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.budget import CacheShape
from gqakit.errors import CheckpointError
from gqakit.models.head_layout import Arrangement
from gqakit.models.inspection import open_model
from gqakit.models.layers import layer_shapes, read_layer
from gqakit.models.remote_code.heads import HeadMaps, read_layers
from gqakit.models.spec import ModelSpec


@dataclass(frozen=True)
class Source:
    """A checkpoint to export, stock or grouped, and the heads that each query head of each layer reads."""

    checkpoint: Checkpoint
    spec: ModelSpec
    heads: tuple[HeadMaps, ...]

    @classmethod
    def open(cls, model: str) -> Source:
        """A directory or hub name.

        Raises:
            CheckpointError: it cannot be read, or its head maps cannot. FamilyError: it is of no known family.
        """
        checkpoint, spec = open_model(model)
        return cls(checkpoint, spec, _heads(checkpoint.config, spec, str(checkpoint.path)))

    @property
    def config(self) -> dict[str, Any]:
        """The parsed `config.json`."""
        return self.checkpoint.config

    @property
    def family(self) -> str:
        """`model_type` of the family, whether grouped or not."""
        return self.spec.family.model_type

    @property
    def is_shared(self) -> bool:
        """Whether keys and values have the same map in every layer."""
        return all(heads.key_head_of_query == heads.value_head_of_query for heads in self.heads)

    def layer(self, index: int, arrangement: Arrangement) -> AttentionWeights:
        """The weights of a layer, rearranged.

        Raises:
            CheckpointError: a weight cannot be read or is not finite.
        """
        return rearranged(read_layer(self.spec, index, self.checkpoint.load), arrangement)

    def shapes(self, index: int, arrangement: Arrangement) -> dict[str, tuple[int, ...]]:
        """The shapes of a layer's attention tensors, rearranged, by their names in the checkpoint."""
        spec = replace(self.spec, num_heads=arrangement.num_heads)
        return layer_shapes(spec, index, arrangement.num_kv_heads, arrangement.num_kv_heads)

    def cache(self, arrangements: list[Arrangement]) -> CacheShape:
        """What an engine that gets these arrangements keeps for a token, at the checkpoint's precision."""
        counts = tuple(arrangement.num_kv_heads for arrangement in arrangements)
        return CacheShape(counts, counts, self.spec.head_dim, self.spec.element_bytes)


def rearranged(weights: AttentionWeights, arrangement: Arrangement) -> AttentionWeights:
    """A layer in another arrangement; it computes the same."""
    live = torch.tensor(arrangement.live)
    output = weights.output[list(arrangement.query)]
    return AttentionWeights(
        _select(weights.query, arrangement.query),
        _select(weights.key, arrangement.key),
        _select(weights.value, arrangement.value),
        torch.where(live[:, None, None], output, torch.zeros((), dtype=output.dtype)),
    )


def _select(projection: Projection, heads: tuple[int, ...]) -> Projection:
    def pick(tensor: Tensor) -> Tensor:
        return tensor[list(heads)]

    return Projection(pick(projection.weight), None if projection.bias is None else pick(projection.bias))


def _heads(config: dict[str, Any], spec: ModelSpec, where: str) -> tuple[HeadMaps, ...]:
    if spec.is_grouped:
        try:
            return tuple(read_layers(config["gqakit"], spec.num_layers, spec.num_heads))
        except ValueError as error:
            raise CheckpointError(f"{where}: {error}") from error
    maps = [tuple(q * heads // spec.num_heads for q in range(spec.num_heads)) for heads in spec.key_heads]
    return tuple(HeadMaps(map_, map_) for map_ in maps)
