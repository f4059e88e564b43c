"""Cache types by name."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from gqakit.core.cache_types.base import CachePair, CacheType, Rotated
from gqakit.core.cache_types.blocks import Bytes, Levels, Quanto, Ranged, Symmetric
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
    Float8("fp8"),
    Float8("fp8_per_token_head", "head"),
    Float8("fp8_per_tensor", "tensor"),
)
TYPES: Mapping[str, CacheType] = {each.name: each for each in _TYPES}

ROTATED = "+h"
VALUES_AT_ONCE = 64
"""Channels of a value that llama.cpp rotates together."""
_STUDY = re.compile(r"int([2-8])/([1-9]\d{0,3})")
_QUANTO = re.compile(r"quanto([24])/([1-9]\d{0,3})")


def cache_type(name: str, *, value: bool = False) -> CacheType:
    """The type of a name.

    Args:
        name: one of `TYPES`; `quantoB/G` for optimum-quanto's B bits (2 or 4) with a range for each G channels; or
            `intB/G` for B bits (2 to 8) and a scale for each G channels; `+h` behind it for a rotation.
        value: it is to hold values, which are rotated by blocks of 64 channels.

    Raises:
        ValueError: there is none; says what there is.
    """
    plain = name.removesuffix(ROTATED)
    if study := _STUDY.fullmatch(plain):
        found: CacheType = Symmetric(plain, int(study[1]), int(study[2]))
    elif quanto := _QUANTO.fullmatch(plain):
        found = Quanto(plain, int(quanto[1]), int(quanto[2]))
    elif plain in TYPES:
        found = TYPES[plain]
    else:
        raise ValueError(
            f"unknown cache type {name!r}. Known: {', '.join(TYPES)}, quantoB/G (B = 2 or 4), for study intB/G (B bits, a "
            "scale for each G channels), each with +h for a Hadamard rotation; two with a comma between them are those of "
            "keys and of values"
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
