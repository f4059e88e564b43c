"""`qcqa`: an evolutionary search for the groups whose heads' weights lie closest to their mean."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from gqakit.core.grouping import Partition
from gqakit.core.within_cluster import WithinClusterError
from gqakit.grouping_methods.base import Cost, GroupingMethod, HeadFeatures, Sizes
from gqakit.grouping_methods.qcqa.evolution import Evolution
from gqakit.grouping_methods.qcqa.layer_search import layer_front


@dataclass(frozen=True)
class QCQA(Evolution, GroupingMethod):
    """NSGA-II over the number of groups and the weight-sharing error, one search per layer for all numbers at once.

    `WSE = Σ_groups Σ_{h∈S} (‖W_K[h] − mean_S W_K‖² + ‖W_V[h] − mean_S W_V‖²)`, taken from the inner products of the
    heads (with their biases), never from the weights. With any sizes allowed a chromosome is a label for each head (the
    paper's arbitrary cardinality); with equal sizes an order of the heads cut into blocks (equal cardinality).

    Unlike the paper: labels are canonical, so that one partition is one chromosome; crossover hands down whole groups;
    a head moves to the group of another that is near more often than to one that is far; the best partition for
    every number of groups is kept even when the population loses it. The paper reports no settings; 100, 100 and 0.9 are
    those of a public reproduction. The paper's one-stage variant, all layers in one chromosome, is worse
    (benchmarks/nsga_sensitivity.py).
    """

    name = "qcqa"
    summary = "evolutionary search for groups of heads with similar weights"
    source = "QCQA, arXiv 2406.10247"
    needs = "weights"
    allocation = "qcqa_layers"

    def objective(self, heads: HeadFeatures) -> Cost:
        """The weight-sharing error of a group."""
        return WithinClusterError(heads.inner)

    def group(self, heads: HeadFeatures, num_groups: int, *, sizes: Sizes, rng: random.Random) -> Partition:
        """See the class."""
        return self.groups(heads, {num_groups: sizes}, seed=str(rng.getrandbits(64)))[num_groups]

    def groups(self, heads: HeadFeatures, counts: Mapping[int, Sizes], *, seed: str) -> dict[int, Partition]:
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
                found |= {each.size: Partition(each.row) for each in front if each.size in answers}
        return found


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
