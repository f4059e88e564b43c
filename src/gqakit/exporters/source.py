"""What is exported: an opened checkpoint, the heads that each query head of it reads, its layers rearranged."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from gqakit.checkpoint import Replacement
from gqakit.conversion.files import PLAN_FILE
from gqakit.core.attention import AttentionWeights
from gqakit.core.budget import CacheShape
from gqakit.errors import CheckpointError, FamilyError, UsageError
from gqakit.models.head_layout import Arrangement
from gqakit.models.layers import layer_shapes, tensors_of_layer
from gqakit.models.remote_code.heads import HeadMaps, read_layers
from gqakit.models.source import Source
from gqakit.planning.plan import Plan


class ExportSource(Source):
    """A checkpoint to export, stock or grouped, with what its engines must know of it."""

    @cached_property
    def heads(self) -> tuple[HeadMaps, ...]:
        """The key head and the value head that each query head of each layer reads.

        Raises:
            CheckpointError: the head maps of a grouped checkpoint cannot be read.
            UsageError: it merges keys behind their normalisation.
        """
        spec, count = self.spec, self.spec.num_heads
        if spec.is_grouped:
            try:
                heads = tuple(read_layers(self.config["gqakit"], spec.num_layers, count))
            except ValueError as error:
                raise CheckpointError(f"{self.path}: {error}") from error
            if any(each.merged_keys for each in heads):
                raise UsageError(
                    f"{self.path}: keys are merged behind their normalisation, which only transformers runs; convert "
                    "with `format=uniform` to merge them before it"
                )
            return heads
        maps = [tuple(query * heads // count for query in range(count)) for heads in spec.key_heads]
        return tuple(HeadMaps(map_, map_) for map_ in maps)

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

    def check_causal(self, engine: str) -> None:
        """Raise `FamilyError` for a decoder that sees later positions too, where an engine would hide them."""
        if not self.config.get("is_causal", True):
            raise FamilyError(
                f"{self.path}: config.json has is_causal = {self.config['is_causal']!r}, so that positions see later ones; "
                f"{engine} would hide these"
            )

    @cached_property
    def plan(self) -> Plan | None:
        """The plan that the checkpoint was converted by, where it lies beside the weights.

        Raises:
            PlanError: the file there is malformed.
        """
        path = self.path / PLAN_FILE
        return Plan.load(path) if path.is_file() else None

    def rearranged(self, arrangements: list[Arrangement]) -> dict[str, Replacement]:
        """The attention tensors of all layers in these arrangements, by their names in the checkpoint.

        No weight is read before a tensor is produced; the last two layers are kept, as two may be interleaved in a
        shard. Producing raises CheckpointError if a weight cannot be read or is not finite.
        """

        @lru_cache(maxsize=2)
        def read(layer: int) -> dict[str, Tensor]:
            return tensors_of_layer(self.spec, layer, rearrange(self.layer(layer), arrangements[layer]))

        made: dict[str, Replacement] = {}
        for layer, arrangement in enumerate(arrangements):
            spec = replace(self.spec, heads=(arrangement.num_heads,) * self.spec.num_layers)
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
        sinks=None if weights.sinks is None else weights.sinks[query],
    )  # fmt: skip
