"""What each layer could become: for every number of heads the partition that a method makes, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch

from gqakit.calibration.store import MomentsFile
from gqakit.checkpoint import Checkpoint
from gqakit.core.attention import AttentionWeights
from gqakit.core.grouping import Partition
from gqakit.core.merging.base import GroupCosts, MergeRule
from gqakit.core.merging.bound import low_rank_bound
from gqakit.core.statistics import HeadStats, LayerStatistics, key_stats, value_stats, weight_inner
from gqakit.errors import PlanError
from gqakit.grouping_methods import METHODS
from gqakit.grouping_methods.base import GroupingMethod, HeadFeatures, Sizes
from gqakit.models.layers import read_layer
from gqakit.models.spec import ModelSpec
from gqakit.planning.allocation.base import LayerEntry

Side = Literal["both", "key", "value"]
"""What one partition is for: keys and values alike, or one of the two."""


@dataclass(frozen=True)
class LayerStats:
    """What methods and merge rules see of one layer."""

    spec: ModelSpec
    weights: AttentionWeights
    moments: LayerStatistics

    @classmethod
    def read(cls, source: Checkpoint, spec: ModelSpec, moments: MomentsFile | None, layer: int) -> LayerStats:
        """Of a layer of a checkpoint; without moments as if `C = I`.

        Raises:
            CheckpointError: a weight is not finite. PlanError: the moments are not.
        """
        known = moments.layer(spec.key(layer)) if moments else LayerStatistics.identity(spec.hidden_size)
        stats = cls(spec, read_layer(spec, layer, source.load), known)
        for name, side in (("key", stats.key), ("value", stats.value)):
            if not bool(torch.isfinite(side.gram).all() and torch.isfinite(side.metric).all()):
                raise PlanError(
                    f"layer {spec.name(layer)}: the scores of its {name} heads are not finite, so no grouping can be "
                    f"trusted; the moments{f' {moments.path}' if moments else ''} are damaged: run `gqakit calibrate` again"
                )
        return stats

    @cached_property
    def key(self) -> HeadStats:
        """Of the key heads."""
        return key_stats(self.weights, self.moments, self.spec.channels)

    @cached_property
    def value(self) -> HeadStats:
        """Of the value heads."""
        return value_stats(self.weights, self.moments)

    def sides(self, side: Side) -> tuple[HeadStats, ...]:
        """Of what is grouped together."""
        return {"both": (self.key, self.value), "key": (self.key,), "value": (self.value,)}[side]

    def inner(self, side: Side) -> torch.Tensor:
        """`[heads, heads]`: inner products of the flattened weights of what is grouped together."""
        key, value = self.weights.key, self.weights.value
        if side == "both":
            return weight_inner(key) + weight_inner(value)
        return weight_inner(key if side == "key" else value)

    def heads(self, rule: MergeRule, side: Side) -> HeadFeatures:
        """What a method sees. Costs are errors relative to losing all heads of a side, summed over the sides."""
        sides = self.sides(side)
        scales = [max(float(stats.energy().sum()), 1e-30) for stats in sides]
        costs = [rule.costs(stats) for stats in sides]
        plain = LayerStats(self.spec, self.weights, LayerStatistics.identity(self.spec.hidden_size))
        return HeadFeatures(
            num_heads=self.weights.num_kv_heads,
            cost=_Relative(costs, scales),
            bound=lambda count: sum(
                low_rank_bound(stats, count) / scale for stats, scale in zip(sides, scales, strict=True)
            ),
            inner=self.inner(side),
            sides=sides,
            plain_sides=lambda: plain.sides(side),
        )


@dataclass(frozen=True)
class _Relative:
    """Costs of keys and values, each relative to losing all heads, added up."""

    costs: Sequence[GroupCosts]
    scales: Sequence[float]

    def __call__(self, group: tuple[int, ...]) -> float:
        return self.many([group])[0]

    def many(self, groups: Sequence[tuple[int, ...]]) -> list[float]:
        each = [
            [c / scale for c in cost.many(groups)]
            for cost, scale in zip(self.costs, self.scales, strict=True)
        ]
        return [sum(values) for values in zip(*each, strict=True)]


@dataclass(frozen=True)
class Choice:
    """One number of heads for one slot.

    Attributes:
        partition: which heads share.
        objective: the total of what the method keeps small.
        error: the merge rule's, relative to losing all heads, summed over keys and values where they go together; None
            where the search never looked at it.
        gap: how much of `error` a better search could save at most; None where unknown.
    """

    partition: Partition
    objective: float
    error: float | None
    gap: float | None

    @classmethod
    def nothing(cls, num_heads: int) -> Choice:
        """Every head stays as it is."""
        return cls(Partition.identity(num_heads), 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class SlotChoices:
    """The choices for one slot, by the number of heads that are left.

    `references` holds, where asked for, what the method's objective makes of other partitions: of `neighbour`ing groups,
    and of the `best` for it that is known.
    """

    slot: LayerEntry
    layer: int
    side: Side
    by_count: Mapping[int, Choice]
    references: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class SlotShape:
    """A slot before anything is known of its heads: where it is, and what sizes each number of groups may have."""

    layer: int
    side: Side
    num_heads: int
    counts: Mapping[int, Sizes]

    @property
    def slot(self) -> LayerEntry:
        """As an allocation sees it."""
        name = f"layer {self.layer}" if self.side == "both" else f"{self.side}s of layer {self.layer}"
        width = 2 if self.side == "both" else 1
        return LayerEntry(name, self.num_heads, width, tuple(sorted(self.counts)))


def choices_of_slot(
    shape: SlotShape,
    read: Callable[[], LayerStats],
    method: GroupingMethod,
    rule: MergeRule,
    seed: int,
    *,
    compare: bool = False,
) -> SlotChoices:
    """The choices for one slot.

    Args:
        shape: where it is and what it may become.
        read: gives its layer; asked only where something is merged.
        method, rule, seed: what decides.
        compare: work out the references too.
    """
    counts = {count: sizes for count, sizes in shape.counts.items() if count < shape.num_heads}
    found: dict[int, Choice] = {}
    references: dict[str, dict[int, float]] = {"neighbour": {}, "best": {}} if compare else {}
    if counts:
        heads = read().heads(rule, shape.side)
        found = _choices(heads, counts, method, f"{seed}/{shape.layer}/{shape.side}")
        if compare:
            objectives = {count: choice.objective for count, choice in found.items()}
            references = _references(heads, counts, method, objectives)
    if shape.num_heads in shape.counts:
        found[shape.num_heads] = Choice.nothing(shape.num_heads)
        for values in references.values():
            values[shape.num_heads] = 0.0
    return SlotChoices(shape.slot, shape.layer, shape.side, found, references)


def _references(
    heads: HeadFeatures, counts: Mapping[int, Sizes], method: GroupingMethod, found: Mapping[int, float]
) -> dict[str, dict[int, float]]:
    objective = method.objective(heads)
    neighbour = METHODS["neighbour"].groups(heads, counts, seed="")
    best = METHODS["optimal"].groups(replace(heads, cost=objective), counts, seed="")

    def total(partition: Partition) -> float:
        return sum(map(objective, partition.groups))

    return {
        "neighbour": {count: total(partition) for count, partition in neighbour.items()},
        "best": {count: min(total(p), found.get(count, math.inf)) for count, p in best.items()},
    }


def _choices(
    heads: HeadFeatures, counts: Mapping[int, Sizes], method: GroupingMethod, seed: str
) -> dict[int, Choice]:
    objective = method.objective(heads)
    found: dict[int, Choice] = {}
    for count, partition in method.groups(heads, counts, seed=seed).items():
        if partition.num_groups != count or not counts[count].hold(partition):
            raise PlanError(f"method {method.name} returned sizes {partition.sizes} for {count} groups")
        found[count] = Choice(
            partition,
            objective=sum(map(objective, partition.groups)),
            error=sum(map(heads.cost, partition.groups)),
            gap=method.gap(heads, partition),
        )
    return found
