"""The KV cache measured: run a model and count the bytes it keeps."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from gqakit.core.cache_types import CachePair
from gqakit.data.samples import Batch
from gqakit.models.outputs import run
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
