"""What a checkpoint is, read from its config and checked against its tensors' shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gqakit.core.capacity import CacheShape
from gqakit.core.channels import Channels
from gqakit.errors import FamilyError
from gqakit.families.base import Family

if TYPE_CHECKING:
    from torch import nn

GROUPED_PREFIX = "gqakit_"
"""`model_type` of a `grouped` checkpoint: this and the family it was converted from."""


@dataclass(frozen=True)
class ModelSpec:
    """The attention of one checkpoint.

    Attributes:
        family: its tensors' names.
        model_type: of the config, so `gqakit_llama` for a grouped Llama.
        num_heads: query heads in every layer.
        key_heads, value_heads: KV heads of each layer.
        head_dim: channels a head. hidden_size: model width.
        channels: which channels of a key head may be mixed.
        element_bytes: bytes of one cache element at the checkpoint's precision.
        biased: the projections that have a bias.
    """

    family: Family
    model_type: str
    num_heads: int
    key_heads: tuple[int, ...]
    value_heads: tuple[int, ...]
    head_dim: int
    hidden_size: int
    channels: Channels
    element_bytes: int
    biased: frozenset[str]

    @property
    def num_layers(self) -> int:
        """Number of attention layers."""
        return len(self.key_heads)

    @property
    def cache(self) -> CacheShape:
        """What the KV cache keeps for a token."""
        return CacheShape(self.key_heads, self.value_heads, self.head_dim, self.element_bytes)

    def attention_module(self, model: nn.Module, layer: int) -> nn.Module:
        """The attention module of a layer in a loaded model."""
        return model.get_submodule(self.family.attention.format(layer=layer))

    def block(self, model: nn.Module, layer: int) -> nn.Module:
        """The transformer block around a layer's attention."""
        path, _, _ = self.family.attention.format(layer=layer).rpartition(".")
        return model.get_submodule(path)

    @property
    def is_grouped(self) -> bool:
        """Whether it is a `grouped` checkpoint, which only our runtime loads."""
        return self.model_type.startswith(GROUPED_PREFIX)


def describe_model(
    families: Mapping[str, Family],
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    element_bytes: int,
) -> ModelSpec:
    """The spec of a checkpoint, every disagreement between config and tensors reported at once.

    Args:
        families: the known families by `model_type`.
        config: the parsed `config.json`.
        shapes: shape of every tensor.
        element_bytes: bytes an element of the attention weights.

    Raises:
        FamilyError: for an unknown family, missing config keys, missing tensors or wrong shapes.
    """
    model_type = str(config.get("model_type"))
    family = families.get(model_type.removeprefix(GROUPED_PREFIX))
    if family is None:
        raise FamilyError(
            f"model family {model_type!r} is not known to gqakit. Known: {', '.join(sorted(families))}. "
            f"The config names architectures {config.get('architectures')} and the checkpoint holds "
            f"{len(shapes)} tensors, such as {', '.join(_attention_like(shapes))}"
        )
    numbers = _Numbers.read(family, config)
    problems: list[str] = []
    projections = (family.query, family.key, family.value, family.output)
    biased = frozenset(p for p in projections if family.bias(0, p) in shapes)
    key_heads, value_heads = _kv_heads(numbers, config, model_type)
    for layer in range(numbers.layers):
        expected = {
            family.query: (numbers.heads * numbers.head_dim, numbers.hidden),
            family.key: (key_heads[layer] * numbers.head_dim, numbers.hidden),
            family.value: (value_heads[layer] * numbers.head_dim, numbers.hidden),
            family.output: (numbers.hidden, numbers.heads * numbers.head_dim),
        }
        for projection, shape in expected.items():
            name = family.weight(layer, projection)
            if name not in shapes:
                problems.append(f"{name} is missing")
            elif shapes[name] != shape:
                problems.append(f"{name} is {list(shapes[name])}, the config asks for {list(shape)}")
            bias = shapes.get(family.bias(layer, projection))
            expected_bias = shape[:1] if projection in biased else None
            if bias != expected_bias:
                problems.append(f"{family.bias(layer, projection)} is {bias}, expected {expected_bias}")
    beyond = family.weight(numbers.layers, family.query)
    if beyond in shapes:
        problems.append(f"{beyond} exists, but the config has {numbers.layers} layers")
    if problems:
        shown = problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
        raise FamilyError(f"config and tensors of this {model_type} disagree: " + "; ".join(shown))
    return ModelSpec(
        family=family,
        model_type=model_type,
        num_heads=numbers.heads,
        key_heads=key_heads,
        value_heads=value_heads,
        head_dim=numbers.head_dim,
        hidden_size=numbers.hidden,
        channels=_key_channels(family, config, shapes, numbers.head_dim),
        element_bytes=element_bytes,
        biased=biased,
    )


@dataclass(frozen=True)
class _Numbers:
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    head_dim: int

    @classmethod
    def read(cls, family: Family, config: Mapping[str, Any]) -> _Numbers:
        required = (family.num_layers, family.num_heads, "hidden_size")
        wrong = [key for key in required if not _positive(config.get(key))]
        optional = [key for key in (family.num_kv_heads, "head_dim") if config.get(key) is not None]
        wrong += [key for key in optional if not _positive(config.get(key))]
        if wrong:
            seen = ", ".join(f"{key} = {config.get(key)!r}" for key in wrong)
            raise FamilyError(
                f"config.json of this {family.model_type} needs positive integers; seen: {seen}"
            )
        heads, hidden = config[family.num_heads], config["hidden_size"]
        kv_heads = config.get(family.num_kv_heads) or heads
        grouped = str(config.get("model_type")).startswith(GROUPED_PREFIX)
        if heads % kv_heads and not grouped:
            raise FamilyError(
                f"config.json: {family.num_heads} = {heads} is no multiple of {family.num_kv_heads} = {kv_heads}"
            )
        if not config.get("head_dim") and hidden % heads:
            raise FamilyError(
                f"config.json: hidden_size {hidden} is no multiple of {heads} heads, and no head_dim"
            )
        return cls(
            config[family.num_layers], heads, kv_heads, hidden, config.get("head_dim") or hidden // heads
        )


def _kv_heads(
    numbers: _Numbers, config: Mapping[str, Any], model_type: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if not model_type.startswith(GROUPED_PREFIX):
        return (numbers.kv_heads,) * numbers.layers, (numbers.kv_heads,) * numbers.layers
    try:
        layers = config["gqakit"]["layers"]
        key = tuple(max(layer["key_head_of_query"]) + 1 for layer in layers)
        value = tuple(max(layer["value_head_of_query"]) + 1 for layer in layers)
    except (KeyError, TypeError, ValueError) as error:
        raise FamilyError(
            f"config.json of this {model_type}: the field 'gqakit' is missing or malformed"
        ) from error
    if len(key) != numbers.layers:
        raise FamilyError(
            f"config.json: 'gqakit' describes {len(key)} layers, the model has {numbers.layers}"
        )
    return key, value


def _key_channels(
    family: Family, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], head_dim: int
) -> Channels:
    if family.key_norm is not None and family.weight(0, family.key_norm) in shapes:
        return Channels.normalised(head_dim)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    factor = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    width = int(head_dim * factor)
    if width % 2 or not 0 <= width <= head_dim:
        raise FamilyError(
            f"config.json: partial_rotary_factor {factor} of a head of {head_dim} channels is a rotary width of "
            f"{width}; it must be even and at most {head_dim}"
        )
    return Channels.rotary(head_dim, width)


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _attention_like(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    names = [name for name in shapes if "attn" in name or "attention" in name] or list(shapes)
    return names[:3]
