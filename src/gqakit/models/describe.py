"""A checkpoint's spec, read from its config and checked against its tensors' shapes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from gqakit.core.rope import Channels
from gqakit.errors import FamilyError, unknown_name
from gqakit.models.config_sizes import Section, Sizes, is_size
from gqakit.models.families.base import EQUAL_GROUPS, ROLES, Family, Stack, lookup
from gqakit.models.families.refused import refusal
from gqakit.models.families.switches import switched_on
from gqakit.models.layers import gain_shapes, layer_shapes
from gqakit.models.spec import GROUPED_PREFIX, Gains, ModelSpec, Site


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
    family = _family(families, model_type, config, shapes)
    grouped = model_type.startswith(GROUPED_PREFIX)
    section = Section.read(config, model_type) if grouped else None
    config = {**config, **family.part(config)}
    chosen = _chosen(family, section.stacks if section else stacks)
    sizes = Sizes.read(family, chosen, config, grouped)
    sites = _in_order(chosen, sizes.layers, len(shapes))
    if section:
        section.check_layers(len(sites))
    positions, layout = family.positions_in(config), family.layout_in(config)
    stack, index = sites[0]  # what is asked of tensors is asked of the first layer
    prefix = _prefix(family, f"{stack.stored(index, 'query')}.weight", shapes)
    query_norm = f"{prefix}{stack.stored_norm(index, family.query_norm)}."
    normed, gains = _norms(family, config, query_norm, shapes, sizes.head_dim)
    channels = _key_channels(family, config, positions, sizes.head_dim)
    kv_heads = tuple(sizes.kv_heads[site.stack.name] for site in sites)
    spec = ModelSpec(
        family=family,
        model_type=model_type,
        sites=sites,
        heads=tuple(sizes.heads[site.stack.name] for site in sites),
        key_heads=section.key_heads if section else kv_heads,
        value_heads=section.value_heads if section else kv_heads,
        head_dim=sizes.head_dim,
        widths=tuple(sizes.widths[site.stack.name] for site in sites),
        channels=Channels.normalised(sizes.head_dim) if normed else channels,
        behind_norm=channels if normed else None,
        element_bytes=element_bytes,
        biased=frozenset(role for role in ROLES if f"{prefix}{stack.stored(index, role)}.bias" in shapes),
        prefix=prefix,
        layout="blocks" if grouped and layout in EQUAL_GROUPS else layout,
        fixed_queries=positions == "bias",
        gains=gains,
        projected_heads=section.projected_heads if section else (None,) * len(sites),
        tied=bool(config.get("tie_word_embeddings")),
    )
    _check_shapes(spec, shapes)
    _check_accounted(spec, config, shapes)
    return spec


def _family(
    families: Mapping[str, Family],
    model_type: str,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> Family:
    family = families.get(model_type.removeprefix(GROUPED_PREFIX))
    if family is not None:
        names = config.get("architectures")
        return family.holding(config).as_named(
            str(n).removeprefix("Gqakit") for n in (names if isinstance(names, list) else ())
        )
    why = refusal(model_type, config)
    if why is not None:
        raise FamilyError(f"a {model_type} cannot be converted: {why}")
    if "model_type" not in config:
        raise FamilyError("config.json has no model_type, which says what family this is; add it")
    like = [name for name in shapes if "attn" in name or "attention" in name] or list(shapes)
    near = difflib.get_close_matches(model_type.lower(), families, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise FamilyError(
        f"model family {model_type!r} is not known to gqakit.{hint} `gqakit families` lists the {len(families)} that are. "
        f"The config names architectures {config.get('architectures')} and the checkpoint holds "
        f"{len(shapes)} tensors, such as {', '.join(like[:3])}"
    )


def _norms(
    family: Family,
    config: Mapping[str, Any],
    query_norm: str,
    shapes: Mapping[str, tuple[int, ...]],
    head_dim: int,
) -> tuple[bool, Gains | None]:
    """Whether queries and keys are normalised, and how gains of single heads lie in a tensor `query_norm…`."""
    shape = shapes.get(f"{query_norm}weight")
    apart = f"{query_norm}norms.0.weight" in shapes
    there = family.query_norm is not None and (apart or shape is not None)
    if (switch := family.norm_switch) is not None and bool(config.get(switch)) != there:
        raise FamilyError(
            f"config.json: {switch} = {config.get(switch)!r}, but the checkpoint has "
            f"{f'tensors {query_norm}*' if there else f'no tensor {query_norm}weight'}"
        )
    if not there or shape == (head_dim,):
        return there, None
    return there, "apart" if shape is None else "each" if len(shape) > 1 else "together"


def _check_shapes(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    _check_encoder(spec.family, spec.prefix, shapes)
    problems: list[str] = []
    for layer in range(spec.num_layers):
        counts = spec.key_heads[layer], spec.value_heads[layer], spec.projected_heads[layer]
        expected = layer_shapes(spec, layer, *counts)
        for name, shape in expected.items():
            if name not in shapes:
                problems.append(f"{name} is missing")
            elif shapes[name] != shape:
                problems.append(f"{name} is {list(shapes[name])}, the config asks for {list(shape)}")
        if spec.behind_norm is not None and spec.gains is None:
            norms = [spec.gain(layer, norm) for norm in spec.norms]
            problems += [f"{name} is missing" for name in norms if name not in shapes]
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
        if wrapped := _wrapped(spec, shapes):
            raise FamilyError(wrapped)
        shown = problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
        raise FamilyError(f"config and tensors of this {spec.model_type} disagree: " + "; ".join(shown))


def _wrapped(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What to say if all stands below a wrapper's name (`module.`, `_orig_mod.`, `base_model.model.`)."""
    first = spec.tensor(0, "query")
    found = next((name for name in shapes if name.endswith(f".{first}")), None)
    if first in shapes or found is None:
        return None
    return (
        f"the tensors of this {spec.model_type} have {found.removesuffix(first)!r} before the names that transformers looks "
        f"for ({found}); save the model itself with save_pretrained and not what wraps it, or rename them"
    )


def _prefix(family: Family, first: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What stands before a stack's path: what is usual, or what some class calls its base model (`transformer.`)."""
    found = [name.removesuffix(first) for name in shapes if name.endswith(f".{first}")]
    known = [*family.prefixes, *(prefix for prefix in found if prefix.count(".") == 1)]
    return next((prefix for prefix in known if f"{prefix}{first}" in shapes), known[0])


def _check_encoder(family: Family, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a decoder that attends to an encoder which is not there, as `WhisperForCausalLM` is saved."""
    encoder = f"{prefix}{family.stacks[0].stored(0, 'query')}.weight"
    if any(stack.cross for stack in family.stacks) and encoder not in shapes:
        raise FamilyError(
            f"this {family.model_type} is a decoder without its encoder (there is no tensor {encoder}), which gqakit does "
            "not convert; convert the whole model"
        )


_ALWAYS_BESIDE = ("*rotary_emb.inv_freq",)
"""Frequencies of the rotary embedding, which older releases of transformers saved."""


def _check_accounted(
    spec: ModelSpec, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Nothing in or about the attention layers may be unknown: a conversion that ignored it would be silently wrong."""
    family = spec.family
    parts = [site.stack.config(config) for site in spec.sites]
    unknown = list(dict.fromkeys(said for part in parts for said in switched_on(family, part)))
    kinds = ("weight", "bias", "maps") if spec.is_grouped else ("weight", "bias")  # maps come of a conversion
    norms = [f"{name}.{kind}" for name in (family.query_norm, family.key_norm) if name for kind in kinds]
    beside = (*_ALWAYS_BESIDE, *family.beside, *norms, *([family.sinks] if family.sinks else ()))
    homes = {}
    for layer, (stack, index) in enumerate(spec.sites):
        homes[f"{spec.prefix}{(stack.stored_home or stack.home).format(layer=index)}."] = layer
    known = {spec.tensor(layer, role, kind) for layer in homes.values() for role in ROLES for kind in _KINDS}
    if spec.gains is not None:
        for layer in homes.values():
            counts = spec.heads[layer], spec.projected_heads[layer] or spec.key_heads[layer]
            for norm, count in zip(spec.norms, counts, strict=True):
                known |= gain_shapes(spec, layer, norm, count).keys()
    found: dict[str, list[str]] = {}
    for name in shapes.keys() - known:
        home = next((home for home in _parents(name) if home in homes), None)
        if home is not None and not any(fnmatchcase(name.removeprefix(home), each) for each in beside):
            found.setdefault(name.removeprefix(home).split(".")[0], []).append(name)
    for names in found.values():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        unknown.append(f"tensor {min(names)}{more}: not a part of the attention that gqakit knows")
    if unknown:
        raise FamilyError(
            f"this {spec.model_type} has attention that gqakit does not convert: {'; '.join(sorted(unknown))}. "
            "Merging its KV heads without that would give wrong results"
        )


_KINDS = ("weight", "bias")


def _parents(name: str) -> list[str]:
    """The paths above a tensor, each with its dot."""
    parts = name.split(".")
    return [".".join(parts[:end]) + "." for end in range(1, len(parts))]


def _chosen(family: Family, names: Sequence[str] | None) -> tuple[Stack, ...]:
    """The stacks by name, in the family's order."""
    if names is None:
        return tuple(stack for stack in family.stacks if stack.cached) or family.stacks
    known = [stack.name for stack in family.stacks]
    for name in names:
        if name not in known:
            raise unknown_name("stack", name, known)
    return tuple(stack for stack in family.stacks if stack.name in names)


def _in_order(stacks: Sequence[Stack], layers: Mapping[str, int], num_tensors: int) -> tuple[Site, ...]:
    """The layers in the order in which a model runs them: those in one block after another."""
    if sum(layers.values()) > num_tensors:  # before anything is made for each of them
        counts = ", ".join(f"{stack.num_layers} = {layers[stack.name]}" for stack in stacks)
        raise FamilyError(f"config.json: {counts}, but the checkpoint holds {num_tensors} tensors in all")
    blocks = list(dict.fromkeys(stack.block for stack in stacks))
    sites = [Site(stack, index) for stack in stacks for index in range(layers[stack.name])]
    return tuple(sorted(sites, key=lambda site: (blocks.index(site.stack.block), site.index)))


def _key_channels(family: Family, config: Mapping[str, Any], positions: str, head_dim: int) -> Channels:
    """Which channels of a key head may be mixed where no normalisation follows."""
    if positions != "rotary":
        return Channels.mixing(head_dim)
    factor = _rotary_share(family, config)
    channels = config.get(family.rotary_dim or "")
    width = channels if is_size(channels) else int(head_dim * factor)
    if width % 2 or width > head_dim:
        said = f"{family.rotary_dim} {channels}" if is_size(channels) else f"partial_rotary_factor {factor}"
        raise FamilyError(
            f"config.json: {said} of a head of {head_dim} channels is a rotary width of "
            f"{width}; it must be even and at most {head_dim}"
        )
    return Channels.rotary(head_dim, width, family.rotary_pairs)


def _rotary_share(family: Family, config: Mapping[str, Any]) -> float:
    """The share of a head's channels that rotate; refused where transformers' code would not follow it."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    ropes = [rope, *rope.values()] if isinstance(rope, dict) else []  # some have one for each type of layer
    stated = [each.get("partial_rotary_factor") for each in ropes if isinstance(each, dict)]
    factor = next(filter(None, stated), None) or lookup(config, "partial_rotary_factor|rotary_pct")
    factor = factor or family.rotary_share
    if not isinstance(factor, int | float) or not 0 <= factor <= 1:
        raise FamilyError(f"config.json: partial_rotary_factor is {factor!r}, expected a number from 0 to 1")
    if factor != 1 and not family.partly_rotary and family.rotary_share == 1 and not family.rotary_dim:
        raise FamilyError(
            f"config.json: partial_rotary_factor is {factor!r}, but transformers' {family.model_type} rotates all channels "
            "of a head whatever it says. If the model was trained so, leave the key out"
        )
    return factor
