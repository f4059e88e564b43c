"""The verb: weights, moments, a method, an allocation and a budget become a Plan. It writes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from gqakit.allocation import ALLOCATIONS
from gqakit.calibration.store import MomentsFile
from gqakit.checkpoint import Checkpoint
from gqakit.core.attention import AttentionWeights
from gqakit.core.capacity import Budget, CacheShape
from gqakit.core.grouping import Grouping, Partition
from gqakit.core.merging import RULES, MergeRule
from gqakit.core.moments import HeadStats, LayerMoments, key_stats, value_stats, weight_stats
from gqakit.errors import BudgetError, PlanError, UsageError, unknown_name
from gqakit.families import ModelSpec, read_layer
from gqakit.methods import METHODS, GroupingMethod, LayerHeads
from gqakit.plan import BudgetRecord, Format, LayerPlan, Merging, Plan, Source, is_uniform
from gqakit.version import __version__


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is made by. `format` "auto" is `uniform` wherever the groups turn out to allow it."""

    method: str = "optimal"
    merge: str = "fold"
    allocation: str = "uniform"
    format: Literal["auto", "uniform", "grouped"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("method", self.method, METHODS),
            ("merge rule", self.merge, RULES),
            ("allocation", self.allocation, ALLOCATIONS),
            ("format", self.format, ("auto", "uniform", "grouped")),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)


@dataclass(frozen=True)
class LayerStats:
    """What methods and merge rules see of one layer."""

    key: HeadStats
    value: HeadStats

    @classmethod
    def of(cls, spec: ModelSpec, weights: AttentionWeights, moments: LayerMoments) -> LayerStats:
        """From the weights and the moments."""
        return cls(key_stats(weights, moments, spec.channels), value_stats(weights, moments))

    def cost(self, rule: MergeRule) -> Callable[[tuple[int, ...]], float]:
        """The rule's error of a group, keys and values each relative to losing all heads, summed."""
        key_scale, value_scale = (max(float(s.energy().sum()), 1e-30) for s in (self.key, self.value))

        @cache
        def cost(group: tuple[int, ...]) -> float:
            key, value = rule.score(self.key.select(group)), rule.score(self.value.select(group))
            return key / key_scale + value / value_scale

        return cost


def heads_to_keep(spec: ModelSpec, budget: Budget, options: PlanOptions) -> list[int]:
    """KV heads that each layer keeps.

    Raises:
        BudgetError: when no number of heads meets the budget within the method and the format.
    """
    equal = options.format == "uniform"
    keep = ALLOCATIONS[options.allocation].allocate(spec.key_heads, budget.kv_ratio, equal=equal)
    if equal and budget.kv_heads is not None and set(keep) != {budget.kv_heads}:
        heads = spec.key_heads[0]
        possible = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise BudgetError(
            f"format uniform makes equal groups, and {heads} KV heads do not divide into {budget.kv_heads}; "
            f"possible: --kv-heads {possible}. Or --format grouped, which takes any number"
        )
    if options.method == "mqa" and set(keep) != {1}:
        raise BudgetError(
            f"method mqa keeps one KV head a layer, the budget ({budget.asked}) leaves {max(keep)}; "
            f"ask for --kv-heads 1 (kv_ratio {1 / spec.key_heads[0]:.4g}) or another method"
        )
    return keep


def make_plan(
    source: Checkpoint,
    spec: ModelSpec,
    budget: Budget,
    options: PlanOptions,
    moments: MomentsFile | None = None,
    name: str | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Plan:
    """Decide everything: how many heads each layer keeps, which share, how they merge.

    Reads one layer's attention weights at a time.

    Args:
        source: the checkpoint, opened.
        spec: its description.
        budget: an upper bound on the cache.
        options: method, merge rule, allocation, format, seed.
        moments: the calibration; None for `C = I` (weights only).
        name: how the plan calls the source; the directory's name by default.
        progress: called once a layer.

    Raises:
        BudgetError: when no grouping within the constraints meets the budget.
        PlanError: when the moments belong to another model.
        UsageError: when the source is itself a grouped checkpoint.
    """
    if spec.is_grouped:
        raise UsageError(
            f"{source.path} is already a grouped checkpoint; convert from the model it was made of"
        )
    fingerprint = source.fingerprint()
    if moments is not None:
        moments.check_source(fingerprint, str(source.path))
    method, rule = METHODS[options.method], RULES[options.merge]
    equal = options.format == "uniform"
    keep = heads_to_keep(spec, budget, options)
    layers: list[LayerPlan] = []
    rules: set[tuple[str, str]] = set()
    for layer in range(spec.num_layers):
        weights = read_layer(spec, layer, source.load)
        stats = LayerStats.of(
            spec, weights, moments.layer(layer) if moments else LayerMoments.identity(spec.hidden_size)
        )
        rules.add((rule.on(stats.key).name, rule.on(stats.value).name))
        rng = random.Random(f"{options.seed}/{layer}")
        partition = _group(method, rule, stats, weights, keep[layer], equal=equal, rng=rng)
        layers.append(_layer_plan(partition, stats, rule))
        progress()
    ((key_rule, value_rule),) = rules
    groupings = tuple(layer.grouping for layer in layers)
    fits_stock = is_uniform(groupings)
    merging = Merging(rule=rule.name, key=key_rule, value=value_rule)
    return Plan(
        source=_source(name or source.path.name, spec, fingerprint),
        budget=_reached(spec.cache, budget, groupings),
        format=_format(options.format, fits_stock),
        method=method.name,
        allocation=options.allocation,
        merging=merging,
        seed=options.seed,
        moments=moments.record() if moments else None,
        versions={"gqakit": __version__},
        notes=tuple(_notes(merging, spec)),
        layers=tuple(layers),
    )


def _group(
    method: GroupingMethod,
    rule: MergeRule,
    stats: LayerStats,
    weights: AttentionWeights,
    num_groups: int,
    *,
    equal: bool,
    rng: random.Random,
) -> Partition:
    if num_groups == weights.num_kv_heads:
        return Partition.identity(num_groups)
    heads = LayerHeads(weights.num_kv_heads, stats.cost(rule), weight_stats(weights))
    partition = method.group(heads, num_groups, equal=equal, rng=rng)
    if partition.num_groups != num_groups or (equal and not partition.is_equal):
        raise PlanError(f"method {method.name} returned sizes {partition.sizes} for {num_groups} groups")
    return partition


def _layer_plan(partition: Partition, stats: LayerStats, rule: MergeRule) -> LayerPlan:
    def relative(heads: HeadStats) -> float:
        error = sum(rule.error(heads.select(group)) for group in partition.groups)
        return float(f"{error / max(float(heads.energy().sum()), 1e-30):.6g}")

    return LayerPlan(
        key=partition.labels,
        value=partition.labels,
        key_error=relative(stats.key),
        value_error=relative(stats.value),
    )


def _source(name: str, spec: ModelSpec, fingerprint: str) -> Source:
    return Source(
        name=name,
        model_type=spec.model_type,
        fingerprint=fingerprint,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.key_heads[0],
        head_dim=spec.head_dim,
    )


def _reached(before: CacheShape, budget: Budget, groupings: Sequence[Grouping]) -> BudgetRecord:
    after = CacheShape(
        tuple(g.key.num_groups for g in groupings),
        tuple(g.value.num_groups for g in groupings),
        before.head_dim,
        before.element_bytes,
    )
    return BudgetRecord(
        asked=budget.asked,
        kv_ratio_asked=budget.kv_ratio,
        kv_ratio=after.ratio_to(before),
        kv_bytes_per_token_before=before.bytes_per_token,
        kv_bytes_per_token=after.bytes_per_token,
    )


def _format(asked: str, fits_stock: bool) -> Format:
    if asked == "auto":
        return "uniform" if fits_stock else "grouped"
    return "uniform" if asked == "uniform" else "grouped"


def _notes(merging: Merging, spec: ModelSpec) -> list[str]:
    notes: list[str] = []
    if merging.key != merging.rule:
        notes.append(
            f"keys use {merging.key} instead of {merging.rule}: this {spec.model_type} normalises keys after "
            "their projection, so no linear map can be folded there"
        )
    return notes
