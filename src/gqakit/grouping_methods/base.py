"""What a grouping method is: the heads of one layer and a number of groups in, a partition out."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from torch import Tensor

from gqakit.core.grouping import Partition
from gqakit.core.key_allocation import contiguous_map, equal_allocation
from gqakit.core.statistics import HeadStats
from gqakit.grouping_methods.configurable import Configurable

Cost = Callable[[tuple[int, ...]], float]
Needs = Literal["nothing", "weights", "moments"]


@dataclass(frozen=True)
class Sizes:
    """How many source heads one group may have: from `least` to `most`."""

    least: int
    most: int

    @classmethod
    def of(
        cls, num_heads: int, num_groups: int, *, equal: bool = False, most: int | None = None
    ) -> Sizes | None:
        """The sizes that `num_groups` groups of `num_heads` heads may have; None where no partition has them.

        Args:
            num_heads, num_groups: heads of the layer, and groups that they go to.
            equal: all groups of the same size.
            most: a cap on the size of a group.
        """
        share, free = num_heads // num_groups, num_heads - num_groups + 1
        least, largest = (share, share) if equal else (1, free)
        found = cls(least, largest if most is None else min(largest, most))
        return found if found.allow(num_heads, num_groups) else None

    @classmethod
    def balanced(cls, num_heads: int, num_groups: int) -> Sizes:
        """As equal as can be."""
        return cls(num_heads // num_groups, -(-num_heads // num_groups))

    def allow(self, num_heads: int, num_groups: int) -> bool:
        """Whether some partition has groups of these sizes."""
        return self.least <= self.most and self.least * num_groups <= num_heads <= self.most * num_groups

    def hold(self, partition: Partition) -> bool:
        """Whether every group of a partition has such a size."""
        return all(self.least <= size <= self.most for size in partition.sizes)


@dataclass(frozen=True)
class HeadFeatures:
    """What a method may look at: the heads of one layer that are grouped together.

    These are its key heads and value heads, or with separate maps one of the two; a method need not know which.

    Attributes:
        num_heads: source KV heads.
        cost: the chosen merge rule's error for a candidate group (ascending head indices), in units in
            which groups add up.
        bound: for a number of groups, what no partition into that number costs less than; 0 where nothing is known.
        inner: `[heads, heads]`, plain inner products of the heads' flattened weights, keys and values one over
            the other: all that QCQA's weight-sharing error needs.
        sides: what calibration says of the key heads, of the value heads, or of both. Without calibration, `C = I`.
        plain_sides: the same with `C = I`, made when asked for.
    """

    num_heads: int
    cost: Cost
    bound: Callable[[int], float]
    inner: Tensor
    sides: tuple[HeadStats, ...]
    plain_sides: Callable[[], tuple[HeadStats, ...]]

    @cached_property
    def weight_sides(self) -> tuple[HeadStats, ...]:
        """The heads' own weights in place of what they do on text."""
        return self.plain_sides()


@dataclass(frozen=True)
class GroupingMethod(Configurable, ABC):
    """A way to choose groups. One file and one line in `gqakit.grouping_methods` make a new one.

    A method is a frozen dataclass; its fields are its options, checked in `__post_init__`, and recorded in the plan.
    """

    kind = "method"
    summary: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[Needs]
    allocation: ClassVar[str] = "uniform"
    """How the budget is spent over the layers unless asked otherwise: as the method was published."""
    formats: ClassVar[str] = "uniform, grouped"
    only_count: ClassVar[int | None] = None
    """The only number of groups that the method makes; None for any."""

    @abstractmethod
    def group(self, heads: HeadFeatures, num_groups: int, *, sizes: Sizes, rng: random.Random) -> Partition:
        """A partition into exactly `num_groups` groups.

        Args:
            heads: the layer.
            num_groups: from 1 to `heads.num_heads`.
            sizes: what size each group may have; the caller has checked that some partition has them.
            rng: the only source of randomness.
        """

    def groups(self, heads: HeadFeatures, counts: Mapping[int, Sizes], *, seed: str) -> dict[int, Partition]:
        """A partition for each number of groups; the same for a number whatever else is asked for.

        Args:
            heads: the layer.
            counts: the numbers of groups, and the sizes allowed with each.
            seed: what randomness starts from.
        """
        return {
            count: self.group(heads, count, sizes=sizes, rng=random.Random(f"{seed}/{count}"))
            for count, sizes in counts.items()
        }

    def objective(self, heads: HeadFeatures) -> Cost:
        """The additive cost of a group that this method keeps small, for Pareto fronts and comparisons."""
        return heads.cost

    def gap(self, heads: HeadFeatures, partition: Partition) -> float | None:
        """How much of a partition's cost the search may have missed at most, as a share of it.

        0 where it is certain to be the best; None for a method that does not minimise `heads.cost`.
        """
        return None


def cut(order: Sequence[int], sizes: Sequence[int]) -> Partition:
    """The partition whose groups are consecutive runs of `order`, of the given sizes."""
    return Partition.of(label for _, label in sorted(zip(order, contiguous_map(sizes), strict=True)))


def cut_evenly(order: Sequence[int], num_groups: int) -> Partition:
    """The same with groups as equal as can be, larger ones first."""
    return cut(order, equal_allocation(len(order), num_groups))


def in_range(name: str, value: float, low: float, high: float | None = None) -> None:
    """Raise `ValueError` unless an option lies between two bounds."""
    if not (low <= value and (high is None or value <= high)):
        upto = "" if high is None else f" and at most {high:g}"
        raise ValueError(f"{name} = {value!r} must be at least {low:g}{upto}")
