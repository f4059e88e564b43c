"""What a checkpoint is, read from its config and checked against its tensors' shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gqakit.core.capacity import CacheShape
from gqakit.core.channels import Channels
from gqakit.errors import FamilyError, unknown_name
from gqakit.families.base import ROLES, Family, Layout, Role, Stack, lookup

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

GROUPED_PREFIX = "gqakit_"
"""`model_type` of a `grouped` checkpoint: this and the family it was converted from."""


class Site(NamedTuple):
    """One attention layer: its stack, and its index there."""

    stack: Stack
    index: int


@dataclass(frozen=True)
class ModelSpec:
    """The attention of one checkpoint: of the stacks that are to be converted.

    Attributes:
        family: its tensors' names.
        model_type: of the config, so `gqakit_llama` for a grouped Llama.
        sites: the attention layers, stack by stack. What is said by layer elsewhere follows this order.
        num_heads: query heads in every layer.
        key_heads, value_heads: KV heads of each layer.
        head_dim: channels a head. hidden_size: model width.
        channels: which channels of a key head may be mixed.
        element_bytes: bytes of one cache element at the checkpoint's precision.
        biased: the projections that have a bias.
        prefix: what stands before a stack's path in tensor names.
        layout: how q, k and v lie in their tensors.
        fixed_queries: query heads must keep their places, as each has its own position bias.
        gains: queries and keys are normalised over all heads together, with a gain for each channel.
    """

    family: Family
    model_type: str
    sites: tuple[Site, ...]
    num_heads: int
    key_heads: tuple[int, ...]
    value_heads: tuple[int, ...]
    head_dim: int
    hidden_size: int
    channels: Channels
    element_bytes: int
    biased: frozenset[Role]
    prefix: str
    layout: Layout
    fixed_queries: bool
    gains: bool

    @property
    def num_layers(self) -> int:
        """Number of attention layers."""
        return len(self.sites)

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of the stacks that `sites` go through."""
        return tuple(dict.fromkeys(site.stack.name for site in self.sites))

    @property
    def cache(self) -> CacheShape:
        """What is kept for a token; in an encoder, what is made for it."""
        return CacheShape(self.key_heads, self.value_heads, self.head_dim, self.element_bytes)

    @property
    def is_cached(self) -> bool:
        """Whether any of these keys and values stay in a cache; an encoder's do not."""
        return any(site.stack.cached for site in self.sites)

    @property
    def is_grouped(self) -> bool:
        """Whether it is a `grouped` checkpoint, which only our runtime loads."""
        return self.model_type.startswith(GROUPED_PREFIX)

    @property
    def can_be_uniform(self) -> bool:
        """Whether the family's own code runs fewer KV heads than query heads."""
        return self.family.num_kv_heads is not None

    @property
    def gain_norms(self) -> tuple[str, str]:
        """Names of the normalisations over all query heads and all key heads; "" where there are none."""
        family = self.family
        return (family.query_norm or "", family.key_norm or "") if self.gains else ("", "")

    def name(self, layer: int) -> str:
        """A layer as messages call it: its index, with the stack where there are several."""
        stack, index = self.sites[layer]
        return f"{stack.name} {index}" if len(self.family.stacks) > 1 else str(index)

    def key(self, layer: int) -> str:
        """A layer as files call it: its index, with the stack where there are several."""
        stack, index = self.sites[layer]
        return f"{stack.name}.{index}" if len(self.family.stacks) > 1 else str(index)

    def tensor(self, layer: int, role: Role, kind: str = "weight") -> str:
        """Name of a projection's weight or bias in the checkpoint, whether or not it is there."""
        stack, index = self.sites[layer]
        return f"{self.prefix}{stack.stored(index, role)}.{kind}"

    def gain(self, layer: int, norm: str) -> str:
        """Name of a normalisation's weight in the checkpoint."""
        stack, index = self.sites[layer]
        return f"{self.prefix}{(stack.stored_home or stack.home).format(layer=index)}.{norm}.weight"

    def attention_module(self, model: PreTrainedModel, layer: int) -> nn.Module:
        """The module of a loaded model that calls the attention function of a layer."""
        stack, index = self.sites[layer]
        return _base(model).get_submodule(stack.attention(index))

    def projection(self, model: PreTrainedModel, layer: int, role: Role) -> nn.Module:
        """A projection of a loaded model. A fused one answers to three roles."""
        stack, index = self.sites[layer]
        return _base(model).get_submodule(stack.module(index, role))

    def norm(self, model: PreTrainedModel, layer: int, name: str) -> nn.Module:
        """A normalisation beside the projections of a loaded model."""
        stack, index = self.sites[layer]
        return _base(model).get_submodule(f"{stack.home.format(layer=index)}.{name}")

    def block(self, model: PreTrainedModel, layer: int) -> nn.Module:
        """The transformer block around a layer's attention."""
        stack, index = self.sites[layer]
        return _base(model).get_submodule(stack.block.format(layer=index))


def _base(model: PreTrainedModel) -> nn.Module:
    return model.base_model


def describe_model(
    families: Mapping[str, Family],
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    element_bytes: int,
    stacks: Sequence[str] | None = None,
) -> ModelSpec:
    """The spec of a checkpoint, every disagreement between config and tensors reported at once.

    Args:
        families: the known families by `model_type`.
        config: the parsed `config.json`.
        shapes: shape of every tensor.
        element_bytes: bytes an element of the attention weights.
        stacks: the kinds of layers to convert; None for those that generation caches, or all where none is.

    Raises:
        FamilyError: for an unknown family, missing config keys, missing tensors or wrong shapes.
        UsageError: for an unknown stack.
    """
    model_type = str(config.get("model_type"))
    family = families.get(model_type.removeprefix(GROUPED_PREFIX))
    if family is None:
        raise FamilyError(
            f"model family {model_type!r} is not known to gqakit. Known: {', '.join(sorted(families))}. "
            f"The config names architectures {config.get('architectures')} and the checkpoint holds "
            f"{len(shapes)} tensors, such as {', '.join(_attention_like(shapes))}"
        )
    grouped = model_type.startswith(GROUPED_PREFIX)
    section = _Section.read(config, model_type) if grouped else None
    chosen = _chosen(family, section.stacks if section else stacks)
    numbers = _Numbers.read(family, chosen, config, grouped)
    sites = _in_order(chosen, numbers.layers)
    if section and len(section.key_heads) != len(sites):
        raise FamilyError(
            f"config.json: 'gqakit' describes {len(section.key_heads)} layers, the model has {len(sites)}"
        )
    positions = family.positions(config) if callable(family.positions) else family.positions
    layout = family.layout(config) if callable(family.layout) else family.layout
    prefix = _prefix(family, sites[0], shapes)
    spec = ModelSpec(
        family=family,
        model_type=model_type,
        sites=sites,
        num_heads=numbers.heads,
        key_heads=section.key_heads if section else (numbers.kv_heads,) * len(sites),
        value_heads=section.value_heads if section else (numbers.kv_heads,) * len(sites),
        head_dim=numbers.head_dim,
        hidden_size=numbers.hidden,
        channels=_key_channels(family, positions, config, shapes, sites[0], prefix, numbers.head_dim),
        element_bytes=element_bytes,
        biased=frozenset(
            role for role in ROLES if f"{prefix}{sites[0].stack.stored(0, role)}.bias" in shapes
        ),
        prefix=prefix,
        layout="blocks" if grouped and layout == "interleaved" else layout,
        fixed_queries=positions == "bias",
        gains=_has_gains(family, sites[0], prefix, shapes, numbers.head_dim),
    )
    _check_shapes(spec, shapes)
    return spec


def _check_shapes(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    from gqakit.families.layers import layer_shapes  # it needs the spec of this module

    problems: list[str] = []
    for layer in range(spec.num_layers):
        expected = layer_shapes(spec, layer, spec.key_heads[layer], spec.value_heads[layer])
        for name, shape in expected.items():
            if name not in shapes:
                problems.append(f"{name} is missing")
            elif shapes[name] != shape:
                problems.append(f"{name} is {list(shapes[name])}, the config asks for {list(shape)}")
        for role in ROLES:
            bias = spec.tensor(layer, role, "bias")
            if bias in shapes and role not in spec.biased:
                problems.append(f"{bias} is {list(shapes[bias])}, the first layer has none")
    for stack in dict.fromkeys(site.stack for site in spec.sites):
        count = sum(site.stack is stack for site in spec.sites)
        beyond = f"{spec.prefix}{stack.stored(count, 'query')}.weight"
        if beyond in shapes:
            problems.append(f"{beyond} exists, but the config has {count} layers")
    if problems:
        shown = problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
        raise FamilyError(f"config and tensors of this {spec.model_type} disagree: " + "; ".join(shown))


def _chosen(family: Family, names: Sequence[str] | None) -> tuple[Stack, ...]:
    """The stacks by name, in the family's order."""
    if names is None:
        return tuple(stack for stack in family.stacks if stack.cached) or family.stacks
    known = [stack.name for stack in family.stacks]
    for name in names:
        if name not in known:
            raise unknown_name("stack", name, known)
    return tuple(stack for stack in family.stacks if stack.name in names)


def _in_order(stacks: Sequence[Stack], layers: Mapping[str, int]) -> tuple[Site, ...]:
    """The layers in the order in which a model runs them: those in one block after another."""
    blocks = list(dict.fromkeys(stack.block for stack in stacks))
    sites = [Site(stack, index) for stack in stacks for index in range(layers[stack.name])]
    return tuple(sorted(sites, key=lambda site: (blocks.index(site.stack.block), site.index)))


def _prefix(family: Family, first: Site, shapes: Mapping[str, tuple[int, ...]]) -> str:
    name = f"{first.stack.stored(first.index, 'query')}.weight"
    return next((prefix for prefix in family.prefixes if f"{prefix}{name}" in shapes), family.prefixes[0])


@dataclass(frozen=True)
class _Section:
    """What the `gqakit` entry of a grouped config says."""

    stacks: tuple[str, ...]
    key_heads: tuple[int, ...]
    value_heads: tuple[int, ...]

    @classmethod
    def read(cls, config: Mapping[str, Any], model_type: str) -> _Section:
        try:
            section = config["gqakit"]
            layers = section["layers"]
            return cls(
                tuple(section["stacks"]),
                tuple(max(layer["key_head_of_query"]) + 1 for layer in layers),
                tuple(max(layer["value_head_of_query"]) + 1 for layer in layers),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FamilyError(
                f"config.json of this {model_type}: the field 'gqakit' is missing or malformed"
            ) from error


@dataclass(frozen=True)
class _Numbers:
    layers: Mapping[str, int]
    heads: int
    kv_heads: int
    hidden: int
    head_dim: int

    @classmethod
    def read(
        cls, family: Family, stacks: Sequence[Stack], config: Mapping[str, Any], grouped: bool
    ) -> _Numbers:
        required = [key for stack in stacks for key in (stack.num_layers, stack.num_heads)]
        keys = list(dict.fromkeys([*required, family.hidden_size]))
        wrong = [key for key in keys if not _positive(lookup(config, key))]
        optional = [
            key for key in (family.num_kv_heads, family.head_dim) if key and lookup(config, key) is not None
        ]
        wrong += [key for key in optional if not _positive(lookup(config, key))]
        if wrong:
            seen = ", ".join(f"{key} = {lookup(config, key)!r}" for key in wrong)
            raise FamilyError(
                f"config.json of this {family.model_type} needs positive integers; seen: {seen}"
            )
        heads = lookup(config, stacks[0].num_heads)
        for stack in stacks[1:]:
            if lookup(config, stack.num_heads) != heads:
                raise FamilyError(
                    f"config.json: {stacks[0].num_heads} = {heads}, but {stack.num_heads} = "
                    f"{lookup(config, stack.num_heads)}; convert one stack at a time with --stacks"
                )
        hidden = lookup(config, family.hidden_size)
        kv_heads = (lookup(config, family.num_kv_heads) if family.num_kv_heads else None) or heads
        if family.count_kv_heads is not None:
            kv_heads = family.count_kv_heads(config) or heads
        if heads % kv_heads and not grouped:
            raise FamilyError(
                f"config.json: {stacks[0].num_heads} = {heads} is no multiple of {family.num_kv_heads} = {kv_heads}"
            )
        head_dim = lookup(config, family.head_dim)
        if not head_dim and hidden % heads:
            raise FamilyError(
                f"config.json: {family.hidden_size} {hidden} is no multiple of {heads} heads, and no {family.head_dim}"
            )
        layers = {stack.name: lookup(config, stack.num_layers) for stack in stacks}
        return cls(layers, heads, kv_heads, hidden, head_dim or hidden // heads)


def _key_channels(
    family: Family,
    positions: str,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    first: Site,
    prefix: str,
    head_dim: int,
) -> Channels:
    if _norm_shape(family, first, prefix, shapes) is not None:
        return Channels.normalised(head_dim)
    if positions != "rotary":
        return Channels.mixing(head_dim)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    factor = rope.get("partial_rotary_factor") or lookup(config, "partial_rotary_factor|rotary_pct")
    factor = factor or family.rotary_share
    width = int(head_dim * factor)
    if width % 2 or not 0 <= width <= head_dim:
        raise FamilyError(
            f"config.json: partial_rotary_factor {factor} of a head of {head_dim} channels is a rotary width of "
            f"{width}; it must be even and at most {head_dim}"
        )
    return Channels.rotary(head_dim, width)


def _norm_shape(
    family: Family, first: Site, prefix: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...] | None:
    home = (first.stack.stored_home or first.stack.home).format(layer=first.index)
    return shapes.get(f"{prefix}{home}.{family.key_norm}.weight")


def _has_gains(
    family: Family, first: Site, prefix: str, shapes: Mapping[str, tuple[int, ...]], head_dim: int
) -> bool:
    shape = _norm_shape(family, first, prefix, shapes)
    return shape is not None and shape[0] > head_dim


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _attention_like(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    names = [name for name in shapes if "attn" in name or "attention" in name] or list(shapes)
    return names[:3]
