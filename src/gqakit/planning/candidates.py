"""What each layer could become: for every number of heads the partition that a method makes, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from gqakit.core.grouping import Partition
from gqakit.core.merging.base import MergeRule
from gqakit.errors import PlanError
from gqakit.grouping_methods import METHODS
from gqakit.grouping_methods.base import GroupingMethod, HeadFeatures, Sizes
from gqakit.planning.allocation.base import LayerEntry
from gqakit.planning.layer_features import LayerFeatures, Side


@dataclass(frozen=True)
class Settled:
    """What a candidate comes to once its maps are made: the loss that is predicted, and the errors that a plan states.

    Errors are relative to losing all heads of that side; 0 for a side that the candidate does not group.
    """

    loss: float
    key_error: float
    value_error: float


@dataclass(frozen=True)
class Candidate:
    """A partition and what it costs.

    `objective` is what the method minimises, `error` the merge rule's, relative to losing all heads (keys' and values' added
    up); `gap` is the share of `error` that a better search could save at most, None where that is unknown; `settled` is
    None where nothing is predicted and something merged.
    """

    partition: Partition
    objective: float
    error: float
    gap: float | None
    settled: Settled | None = None

    @classmethod
    def unchanged(cls, num_heads: int) -> Candidate:
        """Every head stays as it is."""
        return cls(Partition.identity(num_heads), 0.0, 0.0, 0.0, Settled(0.0, 0.0, 0.0))


@dataclass(frozen=True)
class EntryCandidates:
    """The candidates for one layer entry, by the number of heads that are left.

    `references` holds, where asked for, what the method's objective makes of other partitions: of `neighbour`ing groups,
    and of the `best` for it that is known.
    """

    entry: LayerEntry
    layer: int
    side: Side
    by_count: Mapping[int, Candidate]
    references: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class EntryShape:
    """A layer entry before anything is known of its heads: where it is, and what sizes each number of groups may have.

    `widths` is what a key head and a value head take in the cache, relative to each other.
    """

    layer: int
    side: Side
    num_heads: int
    counts: Mapping[int, Sizes]
    widths: tuple[int, int] = (1, 1)

    @property
    def entry(self) -> LayerEntry:
        """As an allocation sees it."""
        name = f"layer {self.layer}" if self.side == "both" else f"{self.side}s of layer {self.layer}"
        key, value = self.widths
        width = {"both": key + value, "key": key, "value": value}[self.side]
        return LayerEntry(name, self.num_heads, width, tuple(sorted(self.counts)))

    def candidates(
        self,
        read: Callable[[int], LayerFeatures],
        method: GroupingMethod,
        rule: MergeRule,
        seed: int,
        *,
        compare: bool = False,
    ) -> EntryCandidates:
        """What the method makes of this entry.

        Args:
            read: gives a layer; asked only where something is merged.
            method, rule, seed: what decides.
            compare: work out the references too.
        """
        counts = {count: sizes for count, sizes in self.counts.items() if count < self.num_heads}
        found: dict[int, Candidate] = {}
        references: dict[str, dict[int, float]] = {"neighbour": {}, "best": {}} if compare else {}
        if counts:
            heads = read(self.layer).heads(rule, self.side)
            found = _candidates(heads, counts, method, f"{seed}/{self.layer}/{self.side}")
            if compare:
                objectives = {count: candidate.objective for count, candidate in found.items()}
                references = _references(heads, counts, method, objectives)
        if self.num_heads in self.counts:
            found[self.num_heads] = Candidate.unchanged(self.num_heads)
            for values in references.values():
                values[self.num_heads] = 0.0
        return EntryCandidates(self.entry, self.layer, self.side, found, references)


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


def _candidates(
    heads: HeadFeatures, counts: Mapping[int, Sizes], method: GroupingMethod, seed: str
) -> dict[int, Candidate]:
    objective = method.objective(heads)
    found: dict[int, Candidate] = {}
    for count, partition in method.groups(heads, counts, seed=seed).items():
        if partition.num_groups != count or not counts[count].hold(partition):
            raise PlanError(f"method {method.name} returned sizes {partition.sizes} for {count} groups")
        found[count] = Candidate(
            partition,
            objective=sum(map(objective, partition.groups)),
            error=sum(map(heads.cost, partition.groups)),
            gap=method.gap(heads, partition),
        )
    return found
