"""The numbers of a config: of layers, heads and channels, and what the section of a grouped checkpoint says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from gqakit.errors import FamilyError
from gqakit.models.families.base import Family, Stack, lookup


@dataclass(frozen=True)
class Section:
    """What the `gqakit` entry of a grouped config says."""

    stacks: tuple[str, ...]
    key_heads: tuple[int, ...]
    value_heads: tuple[int, ...]
    projected_heads: tuple[int | None, ...]

    def check_layers(self, count: int) -> None:
        """Raise `FamilyError` unless this is about as many layers as the model has."""
        if len(self.key_heads) != count:
            raise FamilyError(
                f"config.json: 'gqakit' describes {len(self.key_heads)} layers, the model has {count}"
            )

    @classmethod
    def read(cls, config: Mapping[str, Any], model_type: str) -> Section:
        try:
            section = config["gqakit"]
            layers, stacks = section["layers"], section["stacks"]
            if (
                not stacks
                or not isinstance(stacks, list)
                or not all(isinstance(name, str) for name in stacks)
            ):
                raise ValueError(stacks)
            return cls(
                tuple(stacks),
                tuple(max(layer["key_head_of_query"]) + 1 for layer in layers),
                tuple(max(layer["value_head_of_query"]) + 1 for layer in layers),
                tuple(len(merged) if (merged := layer.get("merged_keys")) else None for layer in layers),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FamilyError(
                f"config.json of this {model_type}: the field 'gqakit' is missing or malformed"
            ) from error


@dataclass(frozen=True)
class Sizes:
    """The numbers of a config by stack: layers, query heads, KV heads, model width; and the channels of a head."""

    layers: Mapping[str, int]
    heads: Mapping[str, int]
    kv_heads: Mapping[str, int]
    widths: Mapping[str, int]
    head_dim: int

    @classmethod
    def read(cls, family: Family, stacks: Sequence[Stack], config: Mapping[str, Any], grouped: bool) -> Sizes:
        counts = {
            stack.name: _counts(family, stack, stack.config(config), grouped=grouped) for stack in stacks
        }
        dims = {name: dim for name, (*_, dim) in counts.items()}
        if len(set(dims.values())) > 1:
            seen = ", ".join(f"{dim} in {name}" for name, dim in dims.items())
            raise FamilyError(
                f"config.json: heads are of different widths: {seen}; convert one stack at a time by `stacks`"
            )
        layers, heads, kv_heads, widths = (
            {name: numbers[place] for name, numbers in counts.items()} for place in range(4)
        )
        return cls(layers, heads, kv_heads, widths, next(iter(dims.values())))


def _counts(
    family: Family, stack: Stack, config: Mapping[str, Any], *, grouped: bool
) -> tuple[int, int, int, int, int]:
    """Layers, query heads, KV heads, model width and channels of a head of one stack.

    Raises:
        FamilyError: a number is missing or makes no sense.
    """
    optional = (
        key for key in (family.num_kv_heads, family.head_dim) if key and lookup(config, key) is not None
    )
    keys = dict.fromkeys([stack.num_layers, stack.num_heads, family.hidden_size, *optional])
    wrong = [key for key in keys if not is_size(lookup(config, key))]
    if wrong:
        seen = ", ".join(f"{key} = {lookup(config, key)!r}" for key in wrong)
        raise FamilyError(f"config.json of this {family.model_type} needs positive integers; seen: {seen}")
    layers, heads, width = (
        lookup(config, key) for key in (stack.num_layers, stack.num_heads, family.hidden_size)
    )
    kv_heads = (lookup(config, family.num_kv_heads) if family.num_kv_heads else None) or heads
    if family.count_kv_heads is not None:
        kv_heads = family.count_kv_heads(config) or heads
    if heads % kv_heads and not grouped:
        raise FamilyError(
            f"config.json: {stack.num_heads} = {heads} is no multiple of {family.num_kv_heads} = {kv_heads}"
        )
    head_dim = lookup(config, family.head_dim)
    if not head_dim and width % heads:
        raise FamilyError(
            f"config.json: {family.hidden_size} {width} is no multiple of {heads} heads, and no {family.head_dim}"
        )
    return layers, heads, kv_heads, width, head_dim or width // heads


def is_size(value: object) -> TypeGuard[int]:
    """Whether this can be a size: a positive integer, and no more than 2^24, which is beyond any model."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 2**24
