"""What a grouping method is: the heads of one layer and a number of groups in, a partition out."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from gqakit.core.grouping import Partition
from gqakit.core.moments import HeadStats

Cost = Callable[[tuple[int, ...]], float]


@dataclass(frozen=True)
class LayerHeads:
    """What a method may look at.

    Attributes:
        num_heads: source KV heads.
        cost: the chosen merge rule's error for a candidate group (ascending head indices), in units in
            which groups add up.
        weights: plain inner products of the flattened heads, without data.
    """

    num_heads: int
    cost: Cost
    weights: HeadStats


class GroupingMethod(ABC):
    """A way to choose groups. One file and one line in `gqakit.methods` make a new one."""

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[Literal["nothing", "weights", "moments"]]

    @abstractmethod
    def group(self, heads: LayerHeads, num_groups: int, *, equal: bool, rng: random.Random) -> Partition:
        """A partition into exactly `num_groups` groups.

        Args:
            heads: the layer.
            num_groups: from 1 to `heads.num_heads`.
            equal: whether all groups must have the same size; the caller has checked that they can.
            rng: the only source of randomness.
        """


def equal_blocks(num_heads: int, num_groups: int) -> list[int]:
    """Sizes of `num_groups` blocks that cover the heads, as equal as can be, larger ones first."""
    size, more = divmod(num_heads, num_groups)
    return [size + 1] * more + [size] * (num_groups - more)


def cut(order: list[int], sizes: list[int]) -> Partition:
    """The partition whose groups are consecutive runs of `order`."""
    groups: list[list[int]] = []
    start = 0
    for size in sizes:
        groups.append(order[start : start + size])
        start += size
    return Partition.from_groups(groups)
