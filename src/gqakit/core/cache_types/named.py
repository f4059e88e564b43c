"""Cache types by name."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from gqakit.core.cache_types.base import CachePair, CacheType, Rotated
from gqakit.core.cache_types.blocks import Bytes, Levels, Ranged, Symmetric
from gqakit.core.cache_types.floats import Float8, Half

_TYPES: tuple[CacheType, ...] = (
    Half("f16", torch.float16),
    Half("bf16", torch.bfloat16),
    Bytes(),
    Ranged("q5_1", 5),
    Symmetric("q5_0", 5),
    Ranged("q4_1", 4),
    Symmetric("q4_0", 4),
    Levels(),
    Float8(False),
    Float8(True),
)
TYPES: Mapping[str, CacheType] = {each.name: each for each in _TYPES}

ROTATED = "+h"
VALUES_AT_ONCE = 64
"""Channels of a value that llama.cpp rotates together."""
_STUDY = re.compile(r"int([2-8])/([1-9]\d{0,3})")


def cache_type(name: str, *, value: bool = False) -> CacheType:
    """The type of a name.

    Args:
        name: one of `TYPES`, or `intB/G` for B bits (2 to 8) and a scale for each G channels; `+h` behind it for a rotation.
        value: it is to hold values, which are rotated by blocks of 64 channels.

    Raises:
        ValueError: there is none; says what there is.
    """
    plain = name.removesuffix(ROTATED)
    study = _STUDY.fullmatch(plain)
    if study is not None:
        found: CacheType = Symmetric(plain, int(study[1]), int(study[2]))
    elif plain in TYPES:
        found = TYPES[plain]
    else:
        raise ValueError(
            f"unknown cache type {name!r}. Known: {', '.join(TYPES)}, for study intB/G (B bits, a scale for each G "
            "channels), each with +h for a Hadamard rotation; two with a comma between them are those of keys and of values"
        )
    if plain == name:
        return found
    return Rotated(found, VALUES_AT_ONCE if value else None)


def cache_pair(names: str) -> CachePair:
    """The pair of one name, or of two with a comma between them: keys and values.

    Raises:
        ValueError: see `cache_type`.
    """
    parts = [part.strip() for part in names.split(",")]
    if len(parts) > 2:
        raise ValueError(
            f"{names!r} names {len(parts)} cache types; expected one, or one for keys and one for values"
        )
    return CachePair(cache_type(parts[0]), cache_type(parts[-1], value=True))
