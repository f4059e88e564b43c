"""Which types of KV cache each engine has, and how to ask it for them."""

from __future__ import annotations

from dataclasses import dataclass

from gqakit.core.cache_types import CachePair, cache_pair
from gqakit.core.cache_types.blocks import Blocks
from gqakit.errors import UsageError
from gqakit.models.rounding import parse_cache_types

FULL = "f16"
"""16 bits: what a cache is compared with, and what every engine has."""
ROTATES = 64
"""llama.cpp rotates the heads of its quantised types where their width is a multiple of this."""


@dataclass(frozen=True)
class EngineCaches:
    """The types of one engine.

    Attributes:
        types: of keys and of values, in any combination.
        offered: the pairs that `kv_cache=auto` chooses from, the most bytes first.
        serve: how it is asked for them, with `{key}` and `{value}` in it.
        spelled: what it calls a type where that is not our name.
    """

    types: tuple[str, ...]
    offered: tuple[str, ...]
    serve: str
    spelled: tuple[tuple[str, str], ...] = ()


_GGML = ("f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_QUANTO = tuple(
    (f"quanto{bits}/{group}", f'{{"backend": "quanto", "nbits": {bits}, "q_group_size": {group}}}')
    for bits in (4, 2)
    for group in (64, 32)
)
"""Types of transformers' `QuantizedCache`, and how it is asked for them. Those of hqq are not known here."""
ENGINE_CACHES = {
    "llama.cpp": EngineCaches(
        _GGML, (FULL, "q8_0", "q8_0,q4_0", "q4_0", "iq4_nl"), "-ctk {key} -ctv {value} -fa on"
    ),
    "vllm": EngineCaches(("f16", "bf16", "fp8"), (FULL, "fp8"), 'kv_cache_dtype="{key}"'),
    "sglang": EngineCaches(
        ("f16", "bf16", "fp8"), (FULL, "fp8"), "--kv-cache-dtype {key}", (("fp8", "fp8_e4m3"),)
    ),
    "transformers": EngineCaches(
        ("f16", "bf16", "fp8_per_tensor", *(name for name, _ in _QUANTO)),
        (FULL, "fp8_per_tensor", "quanto4/64", "quanto4/32"),
        'generate(cache_implementation="quantized", cache_config={key})',
        (("fp8_per_tensor", '{"backend": "fp8"}'), *_QUANTO),
    ),
}
ONE_TYPE = ("vllm", "sglang", "transformers")
"""Engines that hold keys and values in the same type."""
_HALVES = EngineCaches(("f16", "bf16"), (FULL,), "")
"""Of an engine without types that are known here."""


def engine_of(pair: CachePair, engine: str | None) -> str | None:
    """The engine that is asked for, else the first that has both types; None for types that are for study alone."""
    named = (plain_name(pair.key.name), plain_name(pair.value.name))
    having = (name for name, caches in ENGINE_CACHES.items() if set(named) <= set(caches.types))
    return engine or next(having, None)


def as_engine_has_it(names: str, engine: str | None, head_dim: int) -> CachePair:
    """The pair as its engine computes it: llama.cpp rotates the heads of its quantised types by itself.

    Raises:
        UsageError: no such type, or none of the engine's.
    """
    pair = parse_cache_types(names)
    caches = None if engine is None else ENGINE_CACHES.get(engine, _HALVES)
    for each in (pair.key, pair.value):
        if caches is not None and plain_name(each.name) not in caches.types:
            raise UsageError(
                f"`kv_cache={names}`: {engine} has no cache of type {each.name}; it has {', '.join(caches.types)}"
            )
    if engine in ONE_TYPE and pair.key.name != pair.value.name:
        raise UsageError(f"`kv_cache={names}`: {engine} has one type for keys and values")
    if engine_of(pair, engine) != "llama.cpp" or head_dim % ROTATES:
        return pair
    turned = [
        f"{name}+h" if isinstance(kind, Blocks) and not name.endswith("+h") else name
        for kind, name in ((pair.key, pair.key.name), (pair.value, pair.value.name))
    ]
    return cache_pair(",".join(turned))


def offered(engine: str, head_dim: int) -> list[CachePair]:
    """The pairs of an engine that heads of this width can be held in, the most bytes first."""
    pairs = [
        as_engine_has_it(names, engine, head_dim) for names in ENGINE_CACHES.get(engine, _HALVES).offered
    ]
    return [pair for pair in pairs if not any(pair.problems(head_dim))]


def serving(pair: CachePair, engine: str | None) -> str:
    """How to ask an engine to hold its cache in these types; empty where it does so by itself, or none can."""
    name = engine_of(pair, engine)
    if name is None or pair.name == FULL:
        return ""
    caches = ENGINE_CACHES.get(name, _HALVES)
    called = [
        dict(caches.spelled).get(plain, plain) for plain in map(plain_name, (pair.key.name, pair.value.name))
    ]
    return caches.serve.format(key=called[0], value=called[1])


def plain_name(name: str) -> str:
    """A type's name without its rotation."""
    return name.removesuffix("+h")
