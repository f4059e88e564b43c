"""QCQA's search over the partitions of one layer: how they are bred and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gqakit.core.within_cluster import WithinClusterError
from gqakit.grouping_methods.base import Sizes
from gqakit.grouping_methods.qcqa.evolution import Evolution, Found, Rng, Rows, Scores, rng_of
from gqakit.grouping_methods.qcqa.nsga2 import evolve
from gqakit.grouping_methods.qcqa.rows import Limits, Near, cross_blocks, cross_groups, first_rows, num_groups


@dataclass(frozen=True)
class LayerOperators:
    """Chromosomes of one layer, scored by the number of groups and the within-cluster error.

    A chromosome is a label for each head. Where all sizes are equal it stands for an order of the heads cut into blocks.

    Attributes:
        inner: `[heads, heads]`, inner products of the heads' flattened weights.
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
    def error(self) -> WithinClusterError:
        return WithinClusterError(self.inner)

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

    def start(self, population: int, rng: Rng) -> Rows:
        """A first population."""
        return first_rows(len(self.inner), self.counts, population, rng)

    def cross(self, first: Rows, second: Rows, rng: Rng) -> Rows:
        return (cross_blocks if self.blocks else cross_groups)(first, second, rng)

    def mutate(self, rows: Rows, rng: Rng) -> Rows:
        if self.blocks:
            rows = self.near.recut(rows, np.array(sorted(self.counts)), self.rate, rng)
            return self.near.swap(rows, self.rate, rng)
        moved = self.near.move(rows, self.rate, rng)
        if self.free:
            return moved
        swapped = self.near.swap(rows, self.rate, rng)  # where sizes are tight, repair undoes most moves
        return np.where(rng.random((len(rows), 1)) < 0.5, moved, swapped)

    def repair(self, rows: Rows, rng: Rng) -> Rows:
        return self.limits.repair(rows, rng)

    def score(self, rows: Rows) -> Scores:
        return num_groups(rows), self.error.of_labels(torch.from_numpy(rows)).numpy()


def layer_front(inner: Tensor, counts: Mapping[int, Sizes], options: Evolution, *, seed: str) -> list[Found]:
    """One search: the best partition met for every number of groups, fewest first, dominated or not.

    Args:
        inner: `[heads, heads]`, inner products of the heads' flattened weights.
        counts: the numbers of groups, and the sizes allowed with each.
        options: how to search.
        seed: what randomness starts from.

    Returns:
        For each number of groups (`size`) the labels (`row`) and the weight-sharing error (`loss`).

    Raises:
        ValueError: when `inner` is not finite. MissingDependencyError: without pymoo.
    """
    layer = LayerOperators(inner, counts, options.rate(len(inner)))
    start = layer.start(options.population, rng_of(f"{seed}/start"))
    return evolve(start, layer, options, seed=seed)
