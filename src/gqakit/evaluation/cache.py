"""The KV cache measured: run a model and count the bytes it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from gqakit.core.budget import CacheShape
from gqakit.core.cache_types import CachePair, cache_pair
from gqakit.data.samples import Batch
from gqakit.models.outputs import run
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec


def measure_cache(
    model: PreTrainedModel, spec: ModelSpec, batch: Batch, pair: CachePair | None = None
) -> float | None:
    """`bytes_of_cache` of a model's cache after a forward pass on a batch of one sequence.

    Returns:
        None where the class returns no cache, as a classifier of tokens.
    """
    cache: Any = getattr(run(model, {**batch, "use_cache": True}), "past_key_values", None)
    return None if cache is None else bytes_of_cache(cache, spec, pair)


def bytes_of_cache(cache: Any, spec: ModelSpec, pair: CachePair | None = None) -> float:
    """Bytes that a real cache holds for each position of each layer, added up.

    Counts what keys and values hold, so a cache that repeats heads shows it.

    Args:
        cache: of transformers, filled. spec: which of the model's layers count.
        pair: the types that an engine holds what is kept in; None counts the elements' own bytes.
    """
    total = 0.0
    for stack, index in spec.sites:
        if not stack.cached:
            continue
        kept = cache
        if hasattr(cache, "cross_attention_cache"):
            kept = cache.cross_attention_cache if stack.cross else cache.self_attention_cache
        layer = kept.layers[index]
        key, value = layer.keys, layer.values  # [B, heads, S, d]
        if pair is None:
            total += sum(t.numel() * t.element_size() / t.shape[2] for t in (key, value))
        else:
            total += pair.nbytes(key.shape[1], value.shape[1], key.shape[-1])
    return total


def with_stacks_of(spec: ModelSpec, source: ModelSpec) -> ModelSpec:
    """A conversion's layers, and behind them the source's of the kinds that it left as they were, to be counted together.

    Args:
        spec: of the conversion, with the stacks that were converted. source: of what it was made of, with those that count.
    """
    left = [layer for layer, site in enumerate(source.sites) if site.stack.name not in spec.stacks]
    return replace(
        spec,
        sites=(*spec.sites, *(source.sites[layer] for layer in left)),
        key_heads=(*spec.key_heads, *(source.key_heads[layer] for layer in left)),
        value_heads=(*spec.value_heads, *(source.value_heads[layer] for layer in left)),
    )


HALVES = cache_pair("f16")
"""What a cache is compared with: 16 bits for each number."""


@dataclass(frozen=True)
class CacheSizes:
    """A cache's size: in the precision of the run, or in the types that are asked for against 16 bits.

    Attributes:
        own, source: of the checkpoint, and of what it is compared with. element_bytes: of a number in the run.
        pair: the types that bytes are counted in; None for the precision of the run.
    """

    own: CacheShape
    source: CacheShape
    element_bytes: int
    pair: CachePair | None

    def columns(self, measured: float | None) -> dict[str, Any]:
        """What a `CheckpointRow` says of the cache, with its bytes as they were measured."""
        return {
            "kv_bytes_per_token": round(self.per_token),
            "kv_bytes_measured": measured,
            "kv_ratio": self.ratio,
        }

    @property
    def per_token(self) -> float:
        """Bytes for each position."""
        if self.pair is not None:
            return self.own.bytes_in(self.pair)
        return replace(self.own, element_bytes=self.element_bytes).bytes_per_token

    @property
    def ratio(self) -> float:
        """Of the source's."""
        if self.pair is None:
            return self.own.ratio_to(self.source)
        return self.per_token / self.source.bytes_in(HALVES)


def runs_of(
    source: Source, conversions: Sequence[Source], types: CachePair | None
) -> list[tuple[Source, CachePair | None]]:
    """What is scored, with the types of its cache: the source as it is, then the others; with types the source again."""
    others = (source, *conversions) if types else conversions
    return [(source, None), *((each, types) for each in others)]
