"""What is exported: an opened checkpoint, the heads that each query head of it reads, its layers rearranged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqakit.checkpoint import Checkpoint, Replacement
from gqakit.conversion.files import PLAN_FILE
from gqakit.core.attention import AttentionWeights, Projection
from gqakit.core.budget import CacheShape
from gqakit.errors import CheckpointError
from gqakit.models.head_layout import Arrangement
from gqakit.models.layers import layer_shapes, read_layer, tensors_of_layer
from gqakit.models.remote_code.heads import HeadMaps, read_layers
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.planning.plan import Plan


@dataclass(frozen=True)
class ExportSource:
    """A checkpoint to export, stock or grouped, and the heads that each query head of each layer reads.

    `name` is that of its directory, or of its repository on the hub without the organisation.
    """

    name: str
    checkpoint: Checkpoint
    spec: ModelSpec
    heads: tuple[HeadMaps, ...]

    @classmethod
    def open(cls, model: str) -> ExportSource:
        """A directory or hub name.

        Raises:
            CheckpointError: it cannot be read, or its head maps cannot. FamilyError: it is of no known family.
        """
        opened = Source.open(model)
        checkpoint, spec = opened.checkpoint, opened.spec
        heads = _heads(checkpoint.config, spec, str(checkpoint.path))
        return cls(Path(model).expanduser().resolve().name, checkpoint, spec, heads)

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

    @cached_property
    def plan(self) -> Plan | None:
        """The plan that the checkpoint was converted by, where it lies beside the weights.

        Raises:
            PlanError: the file there is malformed.
        """
        path = self.checkpoint.path / PLAN_FILE
        return Plan.load(path) if path.is_file() else None

    def rearranged(self, arrangements: list[Arrangement]) -> dict[str, Replacement]:
        """The attention tensors of all layers in these arrangements, by their names in the checkpoint.

        No weight is read before a tensor is produced; the last two layers are kept, as two may be interleaved in a
        shard. Producing raises CheckpointError if a weight cannot be read or is not finite.
        """

        @lru_cache(maxsize=2)
        def read(layer: int) -> dict[str, Tensor]:
            weights = read_layer(self.spec, layer, self.checkpoint.load)
            return tensors_of_layer(self.spec, layer, rearrange(weights, arrangements[layer]))

        made: dict[str, Replacement] = {}
        for layer, arrangement in enumerate(arrangements):
            spec = replace(self.spec, num_heads=arrangement.num_heads)
            shapes = layer_shapes(spec, layer, arrangement.num_kv_heads, arrangement.num_kv_heads)
            made |= {
                name: Replacement(shape, None, partial(_produce, read, layer, name))
                for name, shape in shapes.items()
            }
        return made

    def cache(self, arrangements: list[Arrangement]) -> CacheShape:
        """What an engine that gets these arrangements keeps for a token, at the checkpoint's precision."""
        counts = tuple(arrangement.num_kv_heads for arrangement in arrangements)
        return CacheShape(counts, counts, self.spec.head_dim, self.spec.element_bytes)


def _produce(read: Callable[[int], dict[str, Tensor]], layer: int, name: str) -> Tensor:
    return read(layer)[name]


def rearrange(weights: AttentionWeights, arrangement: Arrangement) -> AttentionWeights:
    """A layer in another arrangement; it computes the same."""
    live = torch.tensor(arrangement.live)
    output = weights.output[list(arrangement.query)]  # [heads, head_dim, hidden_size]
    return AttentionWeights(
        _select(weights.query, arrangement.query),
        _select(weights.key, arrangement.key),
        _select(weights.value, arrangement.value),
        torch.where(live[:, None, None], output, torch.zeros((), dtype=output.dtype)),
    )


def _select(projection: Projection, heads: tuple[int, ...]) -> Projection:
    """A projection of these heads: `weight` is `[heads, head_dim, hidden_size]`, `bias` `[heads, head_dim]`."""
    chosen = list(heads)
    return Projection(projection.weight[chosen], None if projection.bias is None else projection.bias[chosen])


def _heads(config: dict[str, Any], spec: ModelSpec, where: str) -> tuple[HeadMaps, ...]:
    if spec.is_grouped:
        try:
            return tuple(read_layers(config["gqakit"], spec.num_layers, spec.num_heads))
        except ValueError as error:
            raise CheckpointError(f"{where}: {error}") from error
    maps = [tuple(q * heads // spec.num_heads for q in range(spec.num_heads)) for heads in spec.key_heads]
    return tuple(HeadMaps(map_, map_) for map_ in maps)
