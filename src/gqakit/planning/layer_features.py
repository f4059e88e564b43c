"""What grouping methods and merge rules know of one layer, read once: its weights and the statistics of its heads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch

from gqakit.calibration.store import StatisticsFile
from gqakit.core.attention import AttentionWeights
from gqakit.core.grouping import Grouping
from gqakit.core.merging.base import GroupCosts, MergeRule
from gqakit.core.merging.bound import low_rank_bound
from gqakit.core.statistics import (
    HeadStats,
    LayerStatistics,
    key_stats,
    normalised_key_stats,
    value_stats,
    weight_inner,
)
from gqakit.errors import PlanError
from gqakit.grouping_methods.base import HeadFeatures
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec

Side = Literal["both", "key", "value"]
"""What one partition is for: keys and values alike, or one of the two."""

KEPT_BYTES = 512 * 2**20
"""Layers are kept in memory until they take this much: small models whole, large ones a layer or two."""


@dataclass(frozen=True)
class LayerFeatures:
    """One layer: its weights, its calibration statistics, and what follows for its heads.

    `grouping`: how the heads are merged, where that is settled; no more is then worked out than it takes to merge them.
    """

    spec: ModelSpec
    weights: AttentionWeights
    statistics: LayerStatistics
    behind_norm: bool = False
    grouping: Grouping | None = None

    @cached_property
    def key(self) -> HeadStats:
        """Of the key heads: as a normalisation leaves them where they are merged behind it."""
        if self.behind_norm and self.spec.behind_norm is not None:
            known = self.statistics
            if self.spec.family.norm_after_rope:
                # Maps then act on keys at their absolute positions, so that they must hold at all of them alike.
                known = replace(known, distances=None, frequencies=None)
            return normalised_key_stats(known, self.spec.behind_norm)
        groups = None if self.grouping is None else self.grouping.key.groups
        return key_stats(self.weights, self.statistics, self.spec.channels, groups)

    @cached_property
    def value(self) -> HeadStats:
        """Of the value heads."""
        groups = None if self.grouping is None else self.grouping.value.groups
        return value_stats(self.weights, self.statistics, groups)

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
        """What a grouping method sees. Costs are errors relative to losing all heads of a side, summed over the sides."""
        sides = self.sides(side)
        scales = [max(float(stats.energy().sum()), 1e-30) for stats in sides]
        plain = LayerFeatures(self.spec, self.weights, LayerStatistics.identity(self.weights.output.shape[1]))
        return HeadFeatures(
            num_heads=self.weights.num_kv_heads,
            cost=_Relative([rule.costs(stats) for stats in sides], scales),
            bound=lambda count: sum(
                low_rank_bound(stats, count) / scale for stats, scale in zip(sides, scales, strict=True)
            ),
            inner=self.inner(side),
            sides=sides,
            plain_sides=lambda: plain.sides(side),
        )

    @property
    def nbytes(self) -> int:
        """Memory of the weights and of both sides' statistics, roughly."""
        parts = [self.weights.query.weight, self.weights.key.weight, self.weights.value.weight]
        parts += [self.weights.output, self.key.gram, self.value.gram]
        return sum(part.numel() * part.element_size() for part in parts)


class LayerReader:
    """Reads layers of a source, each once while what was read fits into `KEPT_BYTES`.

    Args:
        source: the model. statistics: its calibration; None for `C = I`.
        behind_norm: keys are to be merged behind their normalisation.
        groupings: of every layer, where they are settled (see `LayerFeatures`); layers are then asked for once, and none
            is kept.
    """

    def __init__(
        self,
        source: Source,
        statistics: StatisticsFile | None,
        *,
        behind_norm: bool = False,
        groupings: Sequence[Grouping] | None = None,
    ) -> None:
        self.source, self.statistics, self.behind_norm = source, statistics, behind_norm
        self.groupings = groupings
        self._kept: OrderedDict[int, LayerFeatures] = OrderedDict()

    def __call__(self, layer: int) -> LayerFeatures:
        """A layer; without calibration statistics as if `C = I`.

        Raises:
            CheckpointError: a weight is not finite. PlanError: the statistics are not.
        """
        if self.groupings is not None:
            return self._read(layer)
        if layer not in self._kept:
            self._kept[layer] = self._read(layer)
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(layer)
        return self._kept[layer]

    def _read(self, layer: int) -> LayerFeatures:
        spec, file = self.source.spec, self.statistics
        known = file.layer(spec.key(layer)) if file else LayerStatistics.identity(spec.widths[layer])
        grouping = None if self.groupings is None else self.groupings[layer]
        features = LayerFeatures(spec, self.source.layer(layer), known, self.behind_norm, grouping)
        for name, stats in (("key", features.key), ("value", features.value)):
            if not bool(torch.isfinite(stats.gram).all() and torch.isfinite(stats.metric).all()):
                raise PlanError(
                    f"layer {spec.name(layer)}: the scores of its {name} heads are not finite, so no grouping can be "
                    f"trusted; the statistics{f' {file.path}' if file else ''} are damaged: run `gqakit calibrate` again"
                )
        return features


@dataclass(frozen=True)
class _Relative:
    """Costs of keys and values, each relative to losing all heads, added up."""

    costs: Sequence[GroupCosts]
    scales: Sequence[float]

    @property
    def patience(self) -> int:
        return min(cost.patience for cost in self.costs)

    def __call__(self, group: tuple[int, ...]) -> float:
        return self.many([group])[0]

    def many(self, groups: Sequence[tuple[int, ...]]) -> list[float]:
        each = [
            [c / scale for c in cost.many(groups)]
            for cost, scale in zip(self.costs, self.scales, strict=True)
        ]
        return [sum(values) for values in zip(*each, strict=True)]
