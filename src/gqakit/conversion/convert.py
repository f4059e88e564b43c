"""A plan carried out on a checkpoint. Nothing is decided here: what decides is `gqakit.planning`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gqakit.calibration.store import StatisticsFile
from gqakit.checkpoint import Replacement, WriteJob, WriteResult, write_checkpoint
from gqakit.conversion.files import CARD_FILE, CHECKSUM_FILE, PLAN_FILE
from gqakit.conversion.layers_ahead import LayersAhead
from gqakit.conversion.side_files import adapted_files
from gqakit.core.apply import apply_grouping
from gqakit.core.basis import Readers, rebased
from gqakit.core.budget import CacheShape
from gqakit.core.cache_types import cache_pair
from gqakit.core.merging import RULES
from gqakit.core.rounding_basis import is_coarse, rounding_basis
from gqakit.errors import PlanError, unknown_name
from gqakit.models.architectures import architecture
from gqakit.models.families.base import EQUAL_GROUPS, Layout
from gqakit.models.grouped_config import grouped_config
from gqakit.models.layers import layer_shapes, tensors_of_layer
from gqakit.models.shipping import shipped_code
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.planning.layer_features import LayerFeatures, LayerReader
from gqakit.planning.plan import Plan


def converted_config(config: Mapping[str, Any], spec: ModelSpec, plan: Plan) -> dict[str, Any]:
    """The new `config.json`, with nothing changed that need not."""
    if plan.format == "uniform":
        assert spec.family.num_kv_heads is not None  # the planner knows what can be uniform
        part = {**spec.family.part(config), spec.family.num_kv_heads: plan.groupings[0].key.num_groups}
        return spec.family.with_part(config, part)
    architecture(config, strict=True)
    pairs = zip(plan.groupings, spec.heads, strict=True)
    maps = [grouping.query_maps(heads, fixed=spec.fixed_queries) for grouping, heads in pairs]
    merged = {
        layer: grouping.key.labels
        for layer, grouping in enumerate(plan.groupings)
        if _merged_apart(plan, layer)
    }
    return grouped_config(dict(config), spec, maps, merged)


def converted_shapes(spec: ModelSpec, plan: Plan) -> dict[int, dict[str, tuple[int, ...]]]:
    """For each layer that changes, its tensors and their new shapes."""
    rearranged = _layout(spec, plan) != spec.layout
    return {
        layer: layer_shapes(
            spec,
            layer,
            grouping.key.num_groups,
            grouping.value.num_groups,
            spec.key_heads[layer] if _merged_apart(plan, layer) else None,
        )
        for layer, grouping in enumerate(plan.groupings)
        if rearranged or not grouping.is_identity or _moves(spec, plan)
    }


def removed_tensors(spec: ModelSpec, plan: Plan) -> set[str]:
    """Tensors of the source that the result does not have: normalisations of single key heads that are merged."""
    shapes = converted_shapes(spec, plan)
    own = (layer_shapes(spec, layer, spec.key_heads[layer], spec.value_heads[layer]) for layer in shapes)
    return {name for layer in own for name in layer} - {name for layer in shapes.values() for name in layer}


def _moves(spec: ModelSpec, plan: Plan) -> bool:
    """Whether heads are put in a basis in which they round well."""
    if plan.cache is None or not plan.cache.basis:
        return False
    pair = cache_pair(plan.cache.types)
    return is_coarse(pair.value) or not spec.channels.locked


def _merged_apart(plan: Plan, layer: int) -> bool:
    """Whether a layer merges keys by maps behind their normalisation."""
    return plan.merging.behind_norm and not plan.groupings[layer].key.is_identity


def _layout(spec: ModelSpec, plan: Plan) -> Layout:
    """How fused projections lie in the result: the turns of an interleaved one need equal groups."""
    if plan.format == "grouped" and spec.layout in EQUAL_GROUPS:
        return "blocks"
    return spec.layout


def converted_cache(spec: ModelSpec, plan: Plan, element_bytes: int) -> CacheShape:
    """What the KV cache of the converted model keeps per token."""
    return CacheShape(
        tuple(g.key.num_groups for g in plan.groupings),
        tuple(g.value.num_groups for g in plan.groupings),
        spec.head_dim,
        element_bytes,
    )


def convert_layer(features: LayerFeatures, plan: Plan, layer: int) -> dict[str, Tensor]:
    """The tensors of one layer after conversion, in the source's precision.

    Args:
        features: of the layer, with the statistics that the plan rests on.
        plan: made for the model. layer: its index.
    """
    spec = features.spec
    converted = apply_grouping(
        features.weights,
        plan.groupings[layer],
        features.key,
        features.value,
        RULES[plan.merging.key],
        RULES[plan.merging.value],
        fixed_queries=spec.fixed_queries,
    )
    if _moves(spec, plan):
        assert plan.cache is not None
        maps = plan.groupings[layer].query_maps(spec.num_heads, fixed=spec.fixed_queries)
        readers, pair = Readers(*maps), cache_pair(plan.cache.types)
        basis = rounding_basis(converted, readers, features.statistics, spec.channels, pair)
        converted = rebased(converted, readers, basis)
    return tensors_of_layer(spec, layer, converted, _layout(spec, plan))


@dataclass(frozen=True)
class Writing:
    """How a checkpoint is written.

    Attributes:
        overwrite: replace a checkpoint that is there.
        workers: processes that convert layers side by side; the bytes are the same.
        progress: called with the number of bytes just written.
    """

    overwrite: bool = False
    workers: int = 1
    progress: Callable[[int], None] = lambda nbytes: None


def convert_checkpoint(
    source: Source,
    plan: Plan,
    statistics: StatisticsFile | None,
    out: Path,
    card: str,
    how: Writing = Writing(),  # frozen
) -> WriteResult:
    """Write the converted checkpoint, tensor by tensor; run again after an interruption, it goes on.

    A layer is converted while what is due before it is being written. Peak memory is the attention weights of a layer with
    its statistics, three finished layers and a copying buffer; with several workers one layer in each, and here as many
    finished layers.

    Args:
        source: the model.
        plan: made for it. statistics: those it names; None for a weights-only plan.
        out: the new directory. card: text of its model card.
        how: see `Writing`.

    Raises:
        PlanError: when plan, statistics and source do not belong together.
        OutputError, CheckpointError: see `gqakit.checkpoint.write_checkpoint`.
    """
    plan.check_source(source.fingerprint_like(plan.source.fingerprint), str(source.path))
    check_rules(plan)
    check_statistics(plan, statistics)
    read = LayerReader(source, statistics, behind_norm=plan.merging.behind_norm, groupings=plan.groupings)
    with LayersAhead(read, plan, _convert, _in_file_order(source, plan), how.workers) as converted:
        job = _write_job(source, plan, card, converted)
        return write_checkpoint(source.checkpoint, out, job, overwrite=how.overwrite, progress=how.progress)


def _convert(read: LayerReader, plan: Plan, layer: int) -> dict[str, Tensor]:
    return convert_layer(read(layer), plan, layer)


def _in_file_order(source: Source, plan: Plan) -> list[int]:
    """The layers that change, as their tensors follow each other in the shards."""
    layer_of = {
        name: layer for layer, shapes in converted_shapes(source.spec, plan).items() for name in shapes
    }
    names = (info.name for shard in source.checkpoint.shards for info in shard.tensors)
    return list(dict.fromkeys(layer_of[name] for name in names if name in layer_of))


def _write_job(
    source: Source, plan: Plan, card: str, converted: Callable[[int], dict[str, Tensor]]
) -> WriteJob:
    """What a plan makes of a checkpoint; `converted` gives the tensors of a layer when they are due."""
    replaced: dict[str, Replacement | None] = dict.fromkeys(removed_tensors(source.spec, plan))
    replaced |= {
        name: Replacement(shape, produce=_Produce(converted, layer, name), **_placed(source, layer, name))
        for layer, shapes in converted_shapes(source.spec, plan).items()
        for name, shape in shapes.items()
    }
    extra = {PLAN_FILE: plan.to_json().encode(), CARD_FILE: card.encode()}
    extra |= adapted_files(source.path, source.checkpoint.config, source.spec, plan)
    if plan.format == "grouped":
        extra |= shipped_code(source.spec.family.model_type)
    return WriteJob(
        replaced=replaced,
        config=converted_config(source.checkpoint.config, source.spec, plan),
        decides=job_of(plan),
        extra_files=extra,
        checksum_file=CHECKSUM_FILE,
    )


def _placed(source: Source, layer: int, name: str) -> dict[str, Any]:
    """`dtype` and `after` of a tensor: those of the source stay in place, maps go behind the key projection."""
    if name in source.checkpoint.tensors:
        return {"dtype": None}
    key = source.spec.tensor(layer, "key")
    return {"dtype": source.checkpoint.info(key).dtype, "after": key}


def job_of(plan: Plan) -> dict[str, Any]:
    """What decides the output besides the source; an interrupted run is only continued with the same."""
    return {"plan": plan.fingerprint}


def check_rules(plan: Plan) -> None:
    """Raise `PlanError` unless this gqakit knows the merge rules that the plan names."""
    for name in (plan.merging.key, plan.merging.value):
        if name not in RULES:
            raise PlanError(f"the plan cannot be carried out: {unknown_name('merge rule', name, RULES)}")


def check_statistics(plan: Plan, statistics: StatisticsFile | None) -> None:
    """Raise `PlanError` unless the statistics are the very ones that the plan rests on."""
    if plan.moments is None:
        return
    if statistics is None:
        raise PlanError(
            f"the plan rests on calibration statistics ({plan.moments.path}, {plan.moments.fingerprint[:19]}…); "
            "give them with `statistics`"
        )
    if statistics.fingerprint != plan.moments.fingerprint:
        raise PlanError(
            f"the plan rests on calibration statistics {plan.moments.fingerprint[:19]}…, {statistics.path} has "
            f"{statistics.fingerprint[:19]}…; give the same statistics or make the plan again"
        )


@dataclass(frozen=True)
class _Produce:
    """One tensor of a layer, taken out of the layer's results when the writer asks for it."""

    converted: Callable[[int], dict[str, Tensor]]
    layer: int
    name: str

    def __call__(self) -> Tensor:
        return self.converted(self.layer)[self.name]
