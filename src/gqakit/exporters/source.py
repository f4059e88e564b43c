"""What is exported: an opened checkpoint, the heads that each query head of it reads, its layers rearranged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqakit.checkpoint import Checkpoint, Replacement
from gqakit.conversion.files import PLAN_FILE
from gqakit.core.attention import AttentionWeights
from gqakit.core.budget import CacheShape
from gqakit.errors import CheckpointError
from gqakit.models.head_layout import Arrangement
from gqakit.models.inspection import open_model
from gqakit.models.layers import layer_shapes, read_layer, tensors_of_layer
from gqakit.models.remote_code.heads_gqakit import LayerHeads, read_layers
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
    heads: tuple[LayerHeads, ...]

    @classmethod
    def open(cls, model: str) -> ExportSource:
        """A directory or hub name.

        Raises:
            CheckpointError: it cannot be read, or its head maps cannot. FamilyError: it is of no known family.
        """
        checkpoint, spec = open_model(model)
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
            for name, shape in shapes.items():
                made[name] = Replacement(shape, None, lambda layer=layer, name=name: read(layer)[name])
        return made

    def cache(self, arrangements: list[Arrangement]) -> CacheShape:
        """What an engine that gets these arrangements keeps for a token, at the checkpoint's precision."""
        counts = tuple(arrangement.num_kv_heads for arrangement in arrangements)
        return CacheShape(counts, counts, self.spec.head_dim, self.spec.element_bytes)


def rearrange(weights: AttentionWeights, arrangement: Arrangement) -> AttentionWeights:
    """A layer in another arrangement; it computes the same."""
    query, key, value = map(torch.tensor, (arrangement.query, arrangement.key, arrangement.value))
    live = torch.tensor(arrangement.live)[:, None, None]
    output = weights.output[query]  # [heads, width_out, head_dim]
    return AttentionWeights(
        weights.query.select(query), weights.key.select(key), weights.value.select(value),
        torch.where(live, output, torch.zeros((), dtype=output.dtype)),
    )  # fmt: skip


def _heads(config: dict[str, Any], spec: ModelSpec, where: str) -> tuple[LayerHeads, ...]:
    if spec.is_grouped:
        try:
            return tuple(read_layers(config["gqakit"], spec.num_layers, spec.num_heads))
        except ValueError as error:
            raise CheckpointError(f"{where}: {error}") from error
    maps = [tuple(q * heads // spec.num_heads for q in range(spec.num_heads)) for heads in spec.key_heads]
    return tuple(LayerHeads(map_, map_) for map_ in maps)
