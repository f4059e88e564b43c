"""A running model whose KV cache is of another type: its keys and values are rounded where attention reads them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from gqakit.core.cache_types import CachePair, cache_pair
from gqakit.errors import UsageError
from gqakit.models.attention_hook import Attending, watched_attention
from gqakit.models.load import use_attention_interface
from gqakit.models.spec import GROUPED_PREFIX, ModelSpec


@contextmanager
def rounded_cache(
    model: PreTrainedModel, spec: ModelSpec, pair: CachePair | None, layers: Collection[int] | None = None
) -> Iterator[None]:
    """The model with keys (as attention meets them, so after RoPE) and values as a cache of these types gives them back.

    That is what an engine computes that reads every key and value from its cache, those of the present positions too.
    A gradient goes straight through the rounding.

    Args:
        model: loaded, stock or grouped. spec: its description, or that of the source that it was made of.
        pair: the types; None changes nothing.
        layers: which of the model's attention layers; all that have a cache by default.
    """
    if pair is None:
        yield
        return
    if not model.config.model_type.startswith(GROUPED_PREFIX):
        use_attention_interface(model, spec)
    chosen = [
        layer
        for layer, site in enumerate(spec.sites)
        if (site.stack.cached if layers is None else layer in layers)
    ]
    look = partial(_rounded, pair)
    with watched_attention(model, {spec.attention_module(model, layer): look for layer in chosen}):
        yield


def _rounded(pair: CachePair, call: Attending) -> tuple[Tensor, Tensor]:
    return pair.stored(call.key, call.value)


def check_cache_types(names: str | None, spec: ModelSpec) -> CachePair | None:
    """The types of a name, for a model.

    Raises:
        UsageError: no such type, a width of heads that it cannot hold, or a model that caches nothing.
    """
    if names is None:
        return None
    pair = parse_cache_types(names)
    check_holds(pair, spec)
    return pair


def parse_cache_types(names: str) -> CachePair:
    """The types of a name, or of two with a comma between them.

    Raises:
        UsageError: there is none of that name.
    """
    try:
        return cache_pair(names)
    except ValueError as error:
        raise UsageError(f"`kv_cache`: {error}") from error


def check_holds(pair: CachePair, spec: ModelSpec) -> None:
    """Raise `UsageError` unless a model caches heads that such a cache can hold."""
    names = pair.name
    if not spec.is_cached:
        raise UsageError(
            f"`kv_cache={names}`: a {spec.family.model_type} keeps no keys and values in a cache, so there is nothing to "
            "round; leave it out"
        )
    if problem := next(pair.problems(spec.head_dim), None):
        raise UsageError(
            f"`kv_cache={names}`: {problem}; a type whose blocks divide it fits, as f16 and fp8 do"
        )
