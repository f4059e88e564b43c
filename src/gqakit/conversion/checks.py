"""Is a converted checkpoint what its plan promises?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from gqakit.checkpoint import Checkpoint
from gqakit.checkpoint.jsonio import canonical
from gqakit.conversion.convert import converted_config, converted_shapes, removed_tensors
from gqakit.conversion.files import CHECKSUM_FILE
from gqakit.core.budget import CacheShape
from gqakit.core.rope import Channels
from gqakit.data.samples import Batch
from gqakit.evaluation.cache import measure_cache
from gqakit.models.families.base import EQUAL_GROUPS
from gqakit.models.grouped_config import grouped_config
from gqakit.models.layers import parameters_of_layer, projection_tensors, tensors_of_layer
from gqakit.models.outputs import Output
from gqakit.models.remote_code.modeling import model_class
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.planning.plan import Plan


@dataclass(frozen=True)
class Check:
    """One thing looked at, and what was seen.

    `passed` says whether it holds; None for what has no threshold and is only information.
    """

    name: str
    passed: bool | None
    detail: str


def check_config(source: Source, plan: Plan, out: Checkpoint) -> Check:
    """The config is the source's with the planned edits."""
    expected = converted_config(source.checkpoint.config, source.spec, plan)
    keys = expected.keys() | out.config.keys()
    # As they are written: NaN, which JSON of Python may hold, equals nothing.
    different = sorted(k for k in keys if canonical(expected.get(k)) != canonical(out.config.get(k)))
    return Check("config", not different, f"unexpected values of {different}" if different else "as planned")


def check_tensors(
    source: Source,
    plan: Plan,
    out: Checkpoint,
    progress: Callable[[int], None] = lambda n: None,
    *,
    trained: bool = False,
    repaired: bool = False,
) -> Iterator[Check]:
    """Names, shapes and types as planned; every value finite; every untouched tensor equal to the source's.

    Where the checkpoint was `trained` after its conversion, any tensor may differ; where it was `repaired`, those of
    attention may, as biases of the output are fitted too. Their number is stated.

    Holds one tensor of each checkpoint at a time.
    """
    planned = _planned_shapes(source.spec, plan)
    yield check_structure(source, plan, out)
    broken: list[str] = []
    changed: list[str] = []
    for name, info in out.tensors.items():
        tensor = out.load(name)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            broken.append(name)
        if (
            name not in planned
            and name in source.checkpoint.tensors
            and tensor.shape == source.checkpoint.tensors[name].shape
        ):
            same = torch.equal(_bits(tensor), _bits(source.checkpoint.load(name)))
            changed += [] if same else [name]
        progress(info.nbytes)
    yield Check("finite", not broken, f"NaN or infinity in {broken[:3]}" if broken else "no NaN, no infinity")
    equal = len(out.tensors) - len(planned) - len(changed)
    fitted = projection_tensors(source.spec) if repaired else set()
    kept = f"{equal} tensors equal the source's, bit for bit" + (
        f"; {len(changed)} others were trained" if changed else ""
    )
    wrong = [] if trained else [name for name in changed if name not in fitted]
    yield Check("untouched tensors", not wrong, f"changed: {wrong[:3]}" if wrong else kept)


def check_structure(source: Source, plan: Plan, out: Checkpoint) -> Check:
    """Names, shapes and types of all tensors are as planned."""
    planned = _planned_shapes(source.spec, plan)
    expected = (source.checkpoint.tensors.keys() - removed_tensors(source.spec, plan)) | planned.keys()
    problems = [f"{name} is missing" for name in sorted(expected - out.tensors.keys())]
    problems += [f"{name} is not expected" for name in sorted(out.tensors.keys() - expected)]
    for name in sorted((planned.keys() - source.checkpoint.tensors.keys()) & out.tensors.keys()):
        if out.tensors[name].shape != planned[name]:
            problems.append(f"{name} is {list(out.tensors[name].shape)}, planned {list(planned[name])}")
    for name in sorted(source.checkpoint.tensors.keys() & out.tensors.keys()):
        original, seen = source.checkpoint.tensors[name], out.tensors[name]
        shape = planned.get(name, original.shape)
        if (seen.shape, seen.dtype) != (shape, original.dtype):
            problems.append(
                f"{name} is {seen.dtype} {list(seen.shape)}, planned {original.dtype} {list(shape)}"
            )
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return Check(
        "structure", not problems, "; ".join(problems[:3]) + more or f"{len(out.tensors)} tensors as planned"
    )


def _planned_shapes(spec: ModelSpec, plan: Plan) -> dict[str, tuple[int, ...]]:
    return {name: shape for shapes in converted_shapes(spec, plan).values() for name, shape in shapes.items()}


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def check_checksums(out: Checkpoint) -> Check:
    """The weight files are the bytes that the conversion wrote."""
    path = out.path / CHECKSUM_FILE
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return Check("checksums", False, f"{CHECKSUM_FILE} cannot be read: {error}")
    different: list[str] = []
    for shard in out.shards:
        with (out.path / shard.name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != recorded.get(shard.name):
                different.append(shard.name)
    seen = f"{len(out.shards)} weight files as they were written"
    return Check(
        "checksums", not different, f"changed since the conversion: {different[:3]}" if different else seen
    )


def check_cache(model: PreTrainedModel, spec: ModelSpec, shape: CacheShape, batch: Batch) -> Check:
    """A real cache is as small as the plan promises."""
    return check_measured_cache(measure_cache(model, spec, batch), type(model).__name__, spec, shape)


def check_measured_cache(measured: float | None, name: str, spec: ModelSpec, shape: CacheShape) -> Check:
    """`check_cache` of what was measured on a model of a class of some name."""
    if measured is None:
        return Check("cache", None, f"{name} returns none")
    cached = [layer for layer, site in enumerate(spec.sites) if site.stack.cached]
    heads = sum(shape.key_heads[layer] + shape.value_heads[layer] for layer in cached)
    promised = heads * shape.head_dim * shape.element_bytes
    detail = f"{measured:,.0f} bytes per token measured, {promised:,} promised"
    return Check("cache", abs(measured - promised) < 0.5, detail)


def attention_errors(
    source: PreTrainedModel, converted: PreTrainedModel, spec: ModelSpec, batch: Batch
) -> list[float]:
    """For each layer `E‖y − ŷ‖² / E‖y‖²` of the attention output, both given the *source's* layer input.

    Args:
        source, converted: loaded models, in eval mode and of the same precision.
        spec: of the source; its module paths hold for both.
        batch: one batch of what the models take.
    """
    errors = [0.0] * spec.num_layers
    with comparing_attention(source, converted, spec, range(spec.num_layers), errors), torch.inference_mode():
        source(**batch)
    return errors


@contextmanager
def comparing_attention(
    source: PreTrainedModel,
    converted: PreTrainedModel,
    spec: ModelSpec,
    layers: Iterable[int],
    errors: list[float],
) -> Iterator[None]:
    """The source with some of its layers run by the other model too, as they run; see `attention_errors`.

    Args:
        source, converted, spec: see there. layers: which. errors: where each layer's goes.
    """

    def compare(layer: int) -> Callable[..., None]:
        twin = spec.attention_module(converted, layer)
        projections = [spec.projection(model, layer, "output") for model in (source, converted)]
        inside = not spec.sites[layer].stack.caller

        def hook(module: nn.Module, args: Any, kwargs: Any, output: tuple[Tensor, ...]) -> None:
            seen: list[Tensor] = []
            kwargs = {n: None if isinstance(v, Cache) else v for n, v in kwargs.items()}  # it is the source's
            with _looking_at(projections[1], seen):
                theirs = twin(*args, **kwargs)[0]
                if not inside:  # the output projection stands outside of this module
                    projections[1](theirs)
            ours = outputs.pop() if inside else projections[0](output[0]).double()
            theirs = seen[0].double()
            errors[layer] = float((ours - theirs).square().sum() / ours.square().sum().clamp_min(1e-300))

        return hook

    outputs: list[Tensor] = []

    def remember(module: nn.Module, args: Any, output: Any) -> None:
        outputs[:] = [output.double()]

    handles: list[Any] = []
    try:
        for layer in layers:
            attention = spec.attention_module(source, layer)
            handles.append(attention.register_forward_hook(compare(layer), with_kwargs=True))
            if not spec.sites[layer].stack.caller:
                handles.append(spec.projection(source, layer, "output").register_forward_hook(remember))
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_runtime(
    source: Source, stock: PreTrainedModel, batch: Batch, *, behind_norm: bool = False
) -> Check:
    """Grouped attention with the source's own heads gives the source's output.

    The one side is transformers' code alone and the other is the head maps, the layout of fused tensors and the grouped
    forward pass, so that what gqakit does not understand of a model shows here however the heads were merged.

    Args:
        source: the model. stock: it, loaded in float32; its tensors are shared. batch: what both are run on.
        behind_norm: with maps behind the normalisations too, those of queries undoing those of keys.
    """
    grouped = identity_model(source, stock, behind_norm=behind_norm)
    with torch.inference_mode():
        expected, seen = (Output.of(model(**batch)) for model in (stock, grouped))
    error = expected.relative_error(seen)
    detail = f"relative squared error {error:.2g} of grouped attention with the source's heads"
    return Check("runtime", error < _EQUAL, detail)


def identity_model(source: Source, stock: PreTrainedModel, *, behind_norm: bool = False) -> PreTrainedModel:
    """The grouped model in which nothing is merged, made in memory of the tensors of the loaded source.

    `behind_norm`: with maps behind the normalisations that undo each other, which they only do there.
    """
    spec = source.spec
    if spec.is_grouped:
        raise ValueError(f"{source.name} is grouped already")
    pairs = zip(spec.heads, spec.key_heads, strict=True)
    maps = [tuple(head * kv_heads // heads for head in range(heads)) for heads, kv_heads in pairs]
    alone = {layer: range(spec.key_heads[layer]) for layer in range(spec.num_layers) if behind_norm}
    config = grouped_config(stock.config.to_dict(), spec, [(each, each) for each in maps], alone)
    kind = model_class(f"Gqakit{type(stock).__name__}")
    with torch.device("meta"):  # its tensors are the source's, so none is made
        model = kind._from_config(kind.config_class.from_dict(config), dtype=stock.dtype)
    model.load_state_dict(stock.state_dict(), strict=False, assign=True)
    layout = "blocks" if spec.layout in EQUAL_GROUPS else spec.layout
    for layer in range(spec.num_layers):
        parameters = parameters_of_layer(spec, model, layer)
        for name, tensor in tensors_of_layer(spec, layer, source.layer(layer), layout).items():
            if name in parameters:
                parameters[name].data = tensor.to(stock.dtype)
        if behind_norm:
            counts = spec.heads[layer], spec.key_heads[layer]
            for name, count, maps in zip(spec.norms, counts, _undoing(spec.turning), strict=True):
                norm: Any = spec.norm(model, layer, name)
                norm.maps = nn.Parameter(maps.to(stock.device, stock.dtype).repeat(count, 1, 1))
    buffers = dict(stock.named_buffers())  # those that are no part of the state too
    for path, module in model.named_modules():
        for name in module._buffers:
            module._buffers[name] = buffers.get(f"{path}.{name}" if path else name)
    return model.eval()


def _undoing(channels: Channels) -> tuple[Tensor, Tensor]:
    """Maps of queries and of keys, `[d, d]`, that leave all scores and change the length of a head.

    Each frequency pair is turned and stretched by a measure of its own, so that it commutes with the positions.
    """
    first, second, free = channels.indices
    key = torch.eye(channels.head_dim, dtype=torch.float64)
    stretch = torch.linspace(0.7, 1.4, len(first), dtype=torch.float64)
    key[first, first] = key[second, second] = stretch * torch.cos(3 * stretch)
    key[first, second], key[second, first] = (
        -stretch * torch.sin(3 * stretch),
        stretch * torch.sin(3 * stretch),
    )
    key[free, free] = torch.linspace(0.7, 1.4, len(free), dtype=torch.float64)
    return torch.linalg.inv(key).mT.contiguous(), key


@contextmanager
def _looking_at(module: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    def look(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output)

    handle = module.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


def check_attention(errors: list[float], plan: Plan, *, trained: bool = False) -> list[Check]:
    """Layers that the plan leaves alone give the source's output, and every output is finite; how far others are off.

    Args:
        errors: of `attention_errors`. plan: what was done.
        trained: whether weights were trained after the conversion, so that no layer need be equal.
    """
    kept = [i for i, g in enumerate(plan.groupings) if g.is_identity and not trained]
    merged = [i for i in range(len(errors)) if i not in kept]
    equal = _REBASED if plan.cache is not None and plan.cache.basis else _EQUAL
    broken = [i for i in merged if not errors[i] < 1e6] + [i for i in kept if not errors[i] < equal]
    checks = [
        Check(
            "attention output",
            not broken,
            f"layers {broken} differ where they should not, or are not finite"
            if broken
            else f"finite in all layers, equal in the {len(kept)} that the plan leaves alone",
        )
    ]
    if merged:
        mean, worst = sum(errors[i] for i in merged) / len(merged), max(merged, key=errors.__getitem__)
        checks.append(
            Check(
                "merged layers",
                None,
                f"relative error of attention's output: mean {mean:.3g}, largest {errors[worst]:.3g} (layer {worst})",
            )
        )
    return checks


_EQUAL = 1e-6
"""Relative squared error below which two outputs in float32 are the same: rounding is about 1e-12."""
_REBASED = 1e-3
"""The same for heads that were put in another basis: their weights are rounded again, to bfloat16 with an error of 1e-5."""
