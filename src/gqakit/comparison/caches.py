"""The types of cache that a comparison scores every checkpoint with, besides 16 bits."""

from __future__ import annotations

from collections.abc import Sequence

from gqakit.core.cache_types import CachePair, cache_pair
from gqakit.models.engine_caches import FULL, ROTATES
from gqakit.models.rounding import check_holds, parse_cache_types
from gqakit.models.spec import ModelSpec


def cache_points(asked: Sequence[str] | str | None, spec: ModelSpec) -> tuple[CachePair, ...]:
    """The types that are asked for, each once, without 16 bits, which every checkpoint is scored in.

    Args:
        asked: names as `convert` and `evaluate` take them; None for 8 and 4 bits, where the model can have them.
        spec: of the model.

    Raises:
        UsageError: no such type, a width of heads that it cannot hold, or a model that caches nothing.
    """
    if asked is None:
        small = "q4_0" if spec.head_dim % ROTATES else "q4_0+h"  # as llama.cpp runs it
        pairs = [cache_pair(name) for name in ("q8_0", small)]
        return tuple(pair for pair in pairs if spec.is_cached and not any(pair.problems(spec.head_dim)))
    pairs = [parse_cache_types(name) for name in ([asked] if isinstance(asked, str) else asked)]
    found = {pair.name: pair for pair in pairs if pair.name != FULL}
    for pair in found.values():
        check_holds(pair, spec)
    return tuple(found.values())


def called(name: str, pair: CachePair | None) -> str:
    """A checkpoint with its keys and values in a cache of these types, for tables."""
    return name if pair is None else f"{name}, {pair.name}"
