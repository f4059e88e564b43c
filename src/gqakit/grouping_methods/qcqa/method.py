"""`qcqa`: an evolutionary search for the groups whose heads' weights lie closest to their mean."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gqakit.core.grouping import Partition
from gqakit.core.within_cluster import Spread
from gqakit.grouping_methods.base import Cost, GroupingMethod, LayerHeads, ModelPoint, Sizes, in_range
from gqakit.grouping_methods.qcqa.breeding import LayerBreed, ModelBreed
from gqakit.grouping_methods.qcqa.nsga2 import dice_of, evolve, undominated


@dataclass(frozen=True)
class FrontPoint:
    """The best partition of one layer that a search has seen for one number of groups, and its weight-sharing error."""

    groups: int
    wse: float
    labels: tuple[int, ...]


@dataclass(frozen=True)
class QCQA(GroupingMethod):
    """NSGA-II over the number of groups and the weight-sharing error, one search a layer for all numbers at once.

    `WSE = Σ_groups Σ_{h∈S} (‖W_K[h] − mean_S W_K‖² + ‖W_V[h] − mean_S W_V‖²)`, taken from the inner products of the
    heads (biases ride along), never from the weights. With any sizes allowed a chromosome is a label for each head (the
    paper's arbitrary cardinality); with equal sizes an order of the heads cut into blocks (equal cardinality).

    Unlike the paper: labels are canonical, so that one partition is one chromosome; crossover hands down whole groups;
    a head moves to the group of another that is near more often than to one that is far; the best partition for
    every number of groups is kept even when the population loses it. The paper reports no settings; 100, 100 and 0.9 are
    those of a public reproduction.

    Attributes:
        population: chromosomes kept from one generation to the next.
        generations: how often as many new ones are bred and scored.
        crossover: probability that two parents are crossed.
        mutation: probability that a head is moved; None for one head of a chromosome on average.
        one_stage: search all layers in one chromosome (`model_front`), which also spends the budget, instead of a layer
            at a time. The paper's comparison.
    """

    name = "qcqa"
    summary = "evolutionary search for groups of heads with similar weights"
    source = "QCQA, arXiv 2406.10247"
    needs = "weights"
    allocation = "qcqa_layers"

    population: int = 100
    generations: int = 100
    crossover: float = 0.9
    mutation: float | None = None
    one_stage: bool = False

    def __post_init__(self) -> None:
        in_range("population", self.population, 4)
        in_range("generations", self.generations, 1)
        in_range("crossover", self.crossover, 0, 1)
        if self.mutation is not None:
            in_range("mutation", self.mutation, 0, 1)

    @property
    def whole_model(self) -> bool:
        """Whether all layers are searched at once."""
        return self.one_stage

    def objective(self, heads: LayerHeads) -> Cost:
        """The weight-sharing error of a group."""
        return Spread(heads.inner)

    def group(self, heads: LayerHeads, num_groups: int, *, sizes: Sizes, rng: random.Random) -> Partition:
        """See the class."""
        return self.groups(heads, {num_groups: sizes}, seed=str(rng.getrandbits(64)))[num_groups]

    def groups(self, heads: LayerHeads, counts: Mapping[int, Sizes], *, seed: str) -> dict[int, Partition]:
        """From one search over all numbers of groups that allow sizes of the kind asked for, asked for or not.

        Raises:
            ValueError: when the inner products of the heads are not finite.
        """
        found: dict[int, Partition] = {}
        for count, sizes in sorted(counts.items()):
            if count == heads.num_heads:
                found[count] = Partition.identity(count)
            elif count == 1:
                found[count] = Partition.single(heads.num_heads)
            elif count not in found:
                kind = _kind(heads.num_heads, count, sizes)
                answers = {n for n, asked in counts.items() if kind == _kind(heads.num_heads, n, asked)}
                front = layer_front(heads.inner, kind, self, seed=seed)
                found |= {each.groups: Partition(each.labels) for each in front if each.groups in answers}
        return found

    def model_front(
        self, inners: Sequence[Tensor], counts: Sequence[Mapping[int, Sizes]], *, seed: str
    ) -> list[ModelPoint]:
        """One search over all layers at once: the points worth choosing from, fewest KV heads first.

        Args:
            inners: of each layer what `LayerHeads.inner` is.
            counts: of each layer the numbers of groups that it may have, and the sizes allowed with each.
            seed: what randomness starts from.

        Raises:
            ValueError: when an inner product is not finite.
        """
        rate = 1 / sum(len(inner) for inner in inners) if self.mutation is None else self.mutation
        layers = ModelBreed([LayerBreed(i, c, rate) for i, c in zip(inners, counts, strict=True)])
        start = layers.start(self.population, dice_of(f"{seed}/start"))
        found = evolve(start, layers.breeding(), self, seed=seed)
        return [
            ModelPoint(
                tuple(Partition.of(row.tolist()) for row in layers.cut(np.array(each.row))),
                each.size,
                each.loss,
            )
            for each in undominated(found)
        ]


def layer_front(inner: Tensor, counts: Mapping[int, Sizes], options: QCQA, *, seed: str) -> list[FrontPoint]:
    """One search: the best partition seen for every number of groups, fewest first, dominated or not.

    Args:
        inner: `[heads, heads]`, inner products of the heads' flattened weights.
        counts: the numbers of groups, and the sizes allowed with each.
        options: how to search.
        seed: what randomness starts from.

    Raises:
        ValueError: when `inner` is not finite.
    """
    layer = LayerBreed(inner, counts, 1 / len(inner) if options.mutation is None else options.mutation)
    start = layer.start(options.population, dice_of(f"{seed}/start"))
    found = evolve(start, layer.breeding(), options, seed=seed)
    return [FrontPoint(each.size, each.loss, each.row) for each in found]


def _kind(num_heads: int, count: int, sizes: Sizes) -> dict[int, Sizes]:
    """All numbers of groups with sizes of the same kind: free, equal, or within the same bounds.

    What is found for one number must not depend on which others are asked for, so the search is always over all.
    """
    if sizes == Sizes.of(num_heads, count):
        return {n: Sizes(1, num_heads - n + 1) for n in range(1, num_heads + 1)}
    if count * sizes.least == num_heads or count * sizes.most == num_heads:
        return {
            n: Sizes(num_heads // n, num_heads // n) for n in range(1, num_heads + 1) if num_heads % n == 0
        }
    return {n: sizes for n in range(1, num_heads + 1) if sizes.allow(num_heads, n)}
