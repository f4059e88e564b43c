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
    """Bytes that a real cache holds for each position of each layer, added up, after a forward pass.

    Counts what keys and values hold, so a cache that repeats heads shows it.

    Args:
        model: loaded. spec: which of its layers count.
        batch: what it is run on; one sequence.
        pair: the types that an engine holds what is kept in; None counts the elements' own bytes.

    Returns:
        None where the class returns no cache, as a classifier of tokens.
    """
    cache: Any = getattr(run(model, {**batch, "use_cache": True}), "past_key_values", None)
    if cache is None:
        return None
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
