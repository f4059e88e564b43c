"""How partitions are bred and scored: those of one layer, and those of all layers in one chromosome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gqakit.core.within_cluster import Spread
from gqakit.grouping_methods.base import Sizes
from gqakit.grouping_methods.qcqa.nsga2 import Breeding, Dice, Rows
from gqakit.grouping_methods.qcqa.rows import Limits, Near, cross_blocks, cross_groups, first_rows, num_groups


@dataclass(frozen=True)
class LayerBreed:
    """Chromosomes of one layer, scored by the number of groups and the spread inside them.

    Where all sizes are equal they are orders of the heads cut into blocks, kept as the labels that this gives.

    Attributes:
        inner: `[heads, heads]`, inner products of what is spread.
        counts: the numbers of groups, and the sizes allowed with each.
        rate: probability that a head is moved.
    """

    inner: Tensor
    counts: Mapping[int, Sizes]
    rate: float

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.inner).all()):
            raise ValueError(
                "the inner products of the heads' weights are not finite: no partition can be scored"
            )

    @cached_property
    def near(self) -> Near:
        return Near.of(self.inner.double().numpy())

    @cached_property
    def spread(self) -> Spread:
        return Spread(self.inner)

    @cached_property
    def limits(self) -> Limits:
        return Limits.of(len(self.inner), self.counts)

    @cached_property
    def blocks(self) -> bool:
        """Whether every partition is an order of the heads cut into blocks."""
        return all(sizes.least == sizes.most for sizes in self.counts.values())

    @cached_property
    def free(self) -> bool:
        """Whether groups of any size are allowed."""
        return all(sizes == Sizes.of(len(self.inner), count) for count, sizes in self.counts.items())

    def start(self, population: int, dice: Dice) -> Rows:
        return first_rows(len(self.inner), self.counts, population, dice)

    def cross(self, first: Rows, second: Rows, dice: Dice) -> Rows:
        return (cross_blocks if self.blocks else cross_groups)(first, second, dice)

    def mutate(self, rows: Rows, dice: Dice) -> Rows:
        if self.blocks:
            rows = self.near.recut(rows, np.array(sorted(self.counts)), self.rate, dice)
            return self.near.swap(rows, self.rate, dice)
        moved = self.near.move(rows, self.rate, dice)
        if self.free:
            return moved
        swapped = self.near.swap(rows, self.rate, dice)  # where sizes are tight, repair undoes most moves
        return np.where(dice.random((len(rows), 1)) < 0.5, moved, swapped)

    def score(self, rows: Rows) -> tuple[Rows, NDArray[np.float64]]:
        return num_groups(rows), self.spread.of_labels(torch.from_numpy(rows)).numpy()

    def breeding(self) -> Breeding:
        return Breeding(self.cross, self.mutate, self.limits.repair, self.score)


@dataclass(frozen=True)
class ModelBreed:
    """Chromosomes of all layers side by side, scored by the totals; every layer is bred as it is alone."""

    layers: Sequence[LayerBreed]

    def cut(self, rows: Rows) -> list[Rows]:
        """The part of each layer."""
        return np.split(rows, np.cumsum([len(layer.inner) for layer in self.layers])[:-1], axis=-1)

    def start(self, population: int, dice: Dice) -> Rows:
        """Rows that keep about the same share of heads in every layer, from all shares."""
        parts: list[Rows] = []
        for layer in self.layers:
            rows = layer.start(population, dice)
            rows = rows[np.argsort(num_groups(rows), kind="stable")]
            parts.append(rows[np.arange(population) * len(rows) // population])
        return np.concatenate(parts, axis=1)

    def cross(self, first: Rows, second: Rows, dice: Dice) -> Rows:
        """Layer by layer: crossed, or whole from one of the parents."""
        pairs = zip(self.layers, self.cut(first), self.cut(second), strict=True)
        return np.concatenate([_crossed_or_whole(layer, a, b, dice) for layer, a, b in pairs], axis=1)

    def mutate(self, rows: Rows, dice: Dice) -> Rows:
        parts = zip(self.layers, self.cut(rows), strict=True)
        return np.concatenate([layer.mutate(part, dice) for layer, part in parts], axis=1)

    def repair(self, rows: Rows, dice: Dice) -> Rows:
        parts = zip(self.layers, self.cut(rows), strict=True)
        return np.concatenate([layer.limits.repair(part, dice) for layer, part in parts], axis=1)

    def score(self, rows: Rows) -> tuple[Rows, NDArray[np.float64]]:
        sizes, losses = zip(
            *(layer.score(part) for layer, part in zip(self.layers, self.cut(rows), strict=True)), strict=True
        )
        return np.sum(sizes, axis=0), np.sum(losses, axis=0)

    def breeding(self) -> Breeding:
        return Breeding(self.cross, self.mutate, self.repair, self.score)


def _crossed_or_whole(layer: LayerBreed, first: Rows, second: Rows, dice: Dice) -> Rows:
    how = dice.integers(3, size=(len(first), 1))
    return np.where(how == 0, layer.cross(first, second, dice), np.where(how == 1, first, second))
