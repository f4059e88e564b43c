"""The verb: weights, moments, a method, an allocation and a budget become a Plan. It writes nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

from gqakit import __version__
from gqakit.calibration.store import MomentsFile
from gqakit.checkpoint import Checkpoint
from gqakit.core.budget import Budget, CacheShape
from gqakit.core.grouping import Grouping, Partition
from gqakit.core.merging import RULES
from gqakit.core.merging.base import MergeRule
from gqakit.core.rope import Channels
from gqakit.errors import PlanError, UsageError
from gqakit.models.spec import ModelSpec
from gqakit.planning.allocation.base import FrontPoint, LayerEntry, Loss, pick
from gqakit.planning.candidates import (
    LayerStats,
    Side,
    SlotChoices,
    SlotShape,
    choices_of_slot,
)
from gqakit.planning.options import PlanOptions, check_budget
from gqakit.planning.plan import (
    BudgetRecord,
    Constraints,
    Format,
    LayerPlan,
    Merging,
    MomentsRecord,
    Plan,
    Source,
    is_uniform,
)

Measure = Callable[[Sequence[SlotChoices]], Sequence[Mapping[int, float]]]
"""Gives, for each slot, what each of its numbers of heads loses when only that slot is converted."""


@dataclass(frozen=True)
class Planned:
    """A plan and what it was picked from: every slot's choices, what was weighed, and the allocation's front."""

    plan: Plan
    choices: tuple[SlotChoices, ...]
    loss: Loss
    front: tuple[FrontPoint, ...]


def make_plan(
    source: Checkpoint,
    spec: ModelSpec,
    budget: Budget,
    options: PlanOptions,
    moments: MomentsFile | None = None,
    name: str | None = None,
    progress: Callable[[], None] = lambda: None,
    measure: Measure | None = None,
) -> Plan:
    """`explore`, and only its plan."""
    return explore(source, spec, budget, options, moments, name, progress, measure).plan


def explore(
    source: Checkpoint,
    spec: ModelSpec,
    budget: Budget,
    options: PlanOptions,
    moments: MomentsFile | None = None,
    name: str | None = None,
    progress: Callable[[], None] = lambda: None,
    measure: Measure | None = None,
    *,
    whole_front: bool = False,
) -> Planned:
    """Decide everything: how many heads each layer keeps, which share, how they merge.

    Reads one layer's attention weights at a time.

    Args:
        source: the checkpoint, opened.
        spec: its description.
        budget: an upper bound on the cache.
        options: method, merge rule, allocation, format, constraints, seed.
        moments: the calibration; None for `C = I` (weights only).
        name: how the plan calls the source; the directory's name by default.
        progress: called once a layer.
        measure: runs the model to say what each choice loses; None where it is not to be run.
        whole_front: look at every number of heads even where the budget alone decides.

    Raises:
        BudgetError: when no grouping within the constraints meets the budget.
        PlanError: when the moments belong to another model, or scores or losses are not finite.
        UsageError: when the source is itself a grouped checkpoint.
    """
    if spec.is_grouped:
        raise UsageError(
            f"{source.path} is already a grouped checkpoint; convert from the model it was made of"
        )
    fingerprint = source.fingerprint()
    if moments is not None:
        moments.check_source(fingerprint, str(source.path))
    shapes = check_budget(spec, budget, options, measure is not None)
    task = _Task(source, spec, budget, options, moments, shapes, progress)
    decided = _layer_by_layer(task, measure, whole_front)
    plan = _plan(task, decided, name or source.path.name)
    return Planned(plan, tuple(decided.choices), decided.loss, tuple(decided.front))


@dataclass(frozen=True)
class _Task:
    source: Checkpoint
    spec: ModelSpec
    budget: Budget
    options: PlanOptions
    moments: MomentsFile | None
    shapes: Sequence[SlotShape]
    progress: Callable[[], None]

    @property
    def rule(self) -> MergeRule:
        return RULES[self.options.merge]

    @cached_property
    def read(self) -> Callable[[int], LayerStats]:
        """A layer's statistics; the last one is kept."""
        return lru_cache(maxsize=1)(
            lambda layer: LayerStats.read(self.source, self.spec, self.moments, layer)
        )

    def layer_plans(self, choices: Sequence[SlotChoices], counts: Sequence[int]) -> list[LayerPlan]:
        """The layers of the plan, when these numbers of heads are chosen for these slots."""
        chosen: dict[int, list[tuple[SlotChoices, int]]] = {}
        for slot, count in zip(choices, counts, strict=True):
            chosen.setdefault(slot.layer, []).append((slot, count))
        return [_layer_plan(here, self.rule, partial(self.read, layer)) for layer, here in chosen.items()]


@dataclass(frozen=True)
class _Decided:
    choices: Sequence[SlotChoices]
    front: Sequence[FrontPoint]
    layers: Sequence[LayerPlan]
    loss: Loss
    allocation: str
    allocation_options: Mapping[str, Any]


def _layer_by_layer(task: _Task, measure: Measure | None, whole_front: bool) -> _Decided:
    """Every layer's choices first, then the split of the budget."""
    options, budget, shapes = task.options, task.budget, task.shapes
    allocation = options.allocation_for(budget, measure is not None)
    loss = options.loss_for(allocation, measure is not None)

    def front(slots: Sequence[LayerEntry]) -> list[FrontPoint]:
        rng = random.Random(f"{options.seed}/allocation")
        return allocation.front(slots, tied=options.format == "uniform", rng=rng)

    if loss == "none" and not whole_front:  # no choice depends on what it costs: look at one number a layer
        slots = [shape.slot for shape in shapes]
        chosen = pick(front(slots), slots, budget.kv_ratio)
        shapes = [replace(s, counts={n: s.counts[n]}) for s, n in zip(shapes, chosen.counts, strict=True)]
    choices: list[SlotChoices] = []
    layers: list[LayerPlan] = []
    for layer in range(task.spec.num_layers):
        here = [
            choices_of_slot(
                shape,
                partial(task.read, layer),
                options.grouping_method,
                task.rule,
                options.seed,
                compare=whole_front,
            )
            for shape in shapes
            if shape.layer == layer
        ]
        if all(len(slot.by_count) == 1 for slot in here):  # while the layer is in memory
            layers += task.layer_plans(here, [min(slot.by_count) for slot in here])
        choices += here
        task.progress()
    choices = _with_losses(choices, loss, measure)
    slots = [slot.slot for slot in choices]
    points = front(slots)
    if len(layers) < task.spec.num_layers:
        layers = task.layer_plans(choices, pick(points, slots, budget.kv_ratio).counts)
    return _Decided(choices, points, layers, loss, allocation.name, allocation.options())


def _with_losses(choices: Sequence[SlotChoices], loss: Loss, measure: Measure | None) -> list[SlotChoices]:
    """The choices with what each loses."""
    if loss == "none":
        return list(choices)
    if loss == "measured":
        assert measure is not None
        found: Sequence[Mapping[int, float]] = measure(choices)
    else:
        found = [{n: getattr(choice, loss) for n, choice in slot.by_count.items()} for slot in choices]
    weighed: list[SlotChoices] = []
    for slot, losses in zip(choices, found, strict=True):
        for count, value in losses.items():
            if not math.isfinite(value):
                raise PlanError(
                    f"{slot.slot.name}: the loss ({loss}) of keeping {count} heads is {value}, not a number"
                )
        values = tuple(losses[count] for count in slot.slot.counts)
        weighed.append(replace(slot, slot=replace(slot.slot, losses=values)))
    return weighed


def _layer_plan(
    slots: Sequence[tuple[SlotChoices, int]], rule: MergeRule, read: Callable[[], LayerStats]
) -> LayerPlan:
    """One layer of the plan: what was chosen for its slots, with the error that the merge settles at."""
    chosen = {slot.side: slot.by_count[count] for slot, count in slots}
    key, value = (chosen.get(side, chosen.get("both")) for side in ("key", "value"))
    assert key is not None
    assert value is not None
    gaps = [choice.gap for choice in chosen.values() if choice.gap is not None]

    def relative(side: Side, partition: Partition) -> float:
        if partition.is_identity:
            return 0.0
        (heads,) = read().sides(side)
        error = sum(rule.error(heads.select(group)) for group in partition.groups)
        return float(f"{error / max(float(heads.energy().sum()), 1e-30):.6g}")

    return LayerPlan(
        key=key.partition.labels,
        value=value.partition.labels,
        key_error=relative("key", key.partition),
        value_error=relative("value", value.partition),
        gap=float(f"{max(gaps):.4g}") if len(gaps) == len(chosen) else None,
    )


def _plan(task: _Task, decided: _Decided, name: str) -> Plan:
    source, spec, options, moments, layers = (
        task.source,
        task.spec,
        task.options,
        task.moments,
        decided.layers,
    )
    rule = task.rule
    key_rule, value_rule = rule.on(spec.channels), rule.on(Channels.mixing(spec.head_dim))
    merging = Merging(rule=rule.name, key=key_rule.name, value=value_rule.name)
    groupings = tuple(layer.grouping for layer in layers)
    return Plan(
        source=_source(name, spec, source.fingerprint()),
        budget=_reached(spec.cache, task.budget, groupings),
        format=_format(options.format, is_uniform(groupings) and spec.can_be_uniform),
        method=options.method,
        method_options=options.grouping_method.options(),
        allocation=decided.allocation,
        allocation_options=dict(decided.allocation_options),
        layer_loss=decided.loss,
        constraints=Constraints(
            kv_maps=options.kv_maps,
            cardinality=options.cardinality,
            max_group_size=options.max_group_size,
            kv_multiple_of=options.kv_multiple_of,
        ),
        merging=merging,
        seed=options.seed,
        moments=moments_record(moments) if moments else None,
        versions={"gqakit": __version__},
        notes=tuple(_notes(merging, spec)),
        layers=tuple(layers),
    )


def moments_record(moments: MomentsFile) -> MomentsRecord:
    """How a plan names the calibration that it rests on."""
    return MomentsRecord(
        path=str(moments.path), fingerprint=moments.fingerprint, tokens=moments.header.tokens
    )


def _source(name: str, spec: ModelSpec, fingerprint: str) -> Source:
    return Source(
        name=name,
        model_type=spec.model_type,
        stacks=spec.stacks_to_tell,
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
