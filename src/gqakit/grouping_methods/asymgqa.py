"""`asymgqa`: heads with similar channels share, found by a random search (AsymGQA, arXiv 2406.14963)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from gqakit.core.grouping import Partition
from gqakit.core.similarity import averaged, channel_similarity
from gqakit.core.within_cluster import WithinClusterError
from gqakit.grouping_methods.base import HeadFeatures, Sizes, cut_evenly, in_range
from gqakit.grouping_methods.by_within_cluster import ByWithinCluster

Similarity = Literal["activation", "weight"]


@dataclass(frozen=True)
class AsymGQA(ByWithinCluster):
    """Activation-informed asymmetric grouping; with options the symmetric and the weight-informed variant.

    Two heads are as similar as each channel of one is to the closest of the other, `core.similarity.channel_similarity`,
    averaged over keys and values. From random groups, as equal as can be, each step picks a head and one of
    its `neighbours` most similar heads, and moves the first into the group of the second (symmetric: swaps the two).
    The step stands if similarity within groups rises, else with probability `p_accept`; then with probability
    `p_reset` the search goes back to the best groups so far, which it returns in the end.

    Similarity within groups is measured as low `WithinClusterError`, `Σ_S |S| − Σ_{h,g∈S} sim(h, g) / |S|`: heads weigh
    alike, in whatever group. Where a move would break the limits on sizes or leave a group empty the two are swapped, so
    that with equal sizes asked for, the asymmetric variant is the symmetric one.

    Differs from the paper: similarities follow from second moments instead of stored activations. Its `n`, `k`,
    `p_acc` and `p_reset` are not known. The defaults were chosen on planted, smooth and random similarities,
    where they find the optimum for 12 heads, nearly always for 16, and come within 1 % of the exhaustive local search
    on average for 32, in a tenth of a second.

    Attributes:
        symmetric: keep groups as equal as can be.
        similarity: of activations on calibration text, or of weights alone.
        iterations: steps of the search, the paper's `n`.
        neighbours: how many of the most similar heads a step may choose from, the paper's `k`.
        p_accept: probability of a step that does not help.
        p_reset: probability of going back to the best so far, after any step.
    """

    name = "asymgqa"
    summary = "random search for groups whose heads have similar channels"
    source = "AsymGQA, arXiv 2406.14963"
    needs = "moments"

    symmetric: bool = False
    similarity: Similarity = "activation"
    iterations: int = 20_000
    neighbours: int = 12
    p_accept: float = 0.01
    p_reset: float = 0.001

    def __post_init__(self) -> None:
        if not isinstance(self.symmetric, bool):
            raise ValueError(f"symmetric = {self.symmetric!r} must be true or false")
        if self.similarity not in get_args(Similarity):
            raise ValueError(
                f"similarity = {self.similarity!r} must be one of {', '.join(get_args(Similarity))}"
            )
        for name in ("iterations", "neighbours"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"{name} = {getattr(self, name)!r} must be a whole number")
            in_range(name, getattr(self, name), 1)
        in_range("p_accept", self.p_accept, 0, 1)
        in_range("p_reset", self.p_reset, 0, 1)

    def objective(self, heads: HeadFeatures) -> WithinClusterError:
        """See the class."""
        sides = heads.sides if self.similarity == "activation" else heads.weight_sides
        return WithinClusterError(averaged(channel_similarity, sides))

    def search(
        self, error: WithinClusterError, num_groups: int, *, sizes: Sizes, rng: random.Random
    ) -> Partition:
        """The search of the paper."""
        order = list(range(error.num_heads))
        rng.shuffle(order)
        start = cut_evenly(order, num_groups)
        if num_groups in (1, error.num_heads):
            return start
        walk = Walk(error.inner.tolist(), start)
        nearest = _nearest(walk.similarity, self.neighbours)
        best, best_gain, gain = start, 0.0, 0.0  # gains count from the start
        for _ in range(self.iterations):
            head = rng.randrange(error.num_heads)
            change = self._step(walk, head, rng.choice(nearest[head]), sizes)
            if change is not None and (change.gain > _ROUNDING or rng.random() < self.p_accept):
                walk.apply(change)
                gain += change.gain
                if gain > best_gain + _ROUNDING:
                    best, best_gain = Partition.of(walk.labels), gain
            if rng.random() < self.p_reset:
                walk, gain = Walk(walk.similarity, best), best_gain
        return best

    def _step(self, walk: Walk, head: int, partner: int, sizes: Sizes) -> Change | None:
        """What a step with these two heads does; None where they share already."""
        own, other = walk.labels[head], walk.labels[partner]
        if own == other:
            return None
        room = len(walk.members[own]) > max(sizes.least, 1) and len(walk.members[other]) < sizes.most
        return walk.move(head, other) if room and not self.symmetric else walk.swap(head, partner)


_ROUNDING = 1e-12
"""Gains below this are rounding, on similarities of at most 1."""


def _nearest(similarity: list[list[float]], count: int) -> list[list[int]]:
    """The most similar other heads of each head; of equals the first."""
    return [
        sorted((g for g in range(len(row)) if g != head), key=lambda g: -row[g])[:count]
        for head, row in enumerate(similarity)
    ]


class Change(NamedTuple):
    """Which head goes to which group, what the groups concerned hold after that, and what is gained."""

    goes: tuple[tuple[int, int], ...]
    within: tuple[tuple[int, float], ...]
    gain: float


class Walk:
    """A partition on its way.

    Gains are those of `Σ_S within(S) / |S|`, `within` the sum of similarities over ordered pairs in a group, each worked
    out from the two groups concerned alone.
    """

    def __init__(self, similarity: list[list[float]], partition: Partition) -> None:
        self.similarity = similarity
        self.labels = list(partition.labels)
        self.members = [list(group) for group in partition.groups]
        self.within = [sum(self._to(head, group) for head in group) for group in self.members]

    def _to(self, head: int, group: list[int]) -> float:
        row = self.similarity[head]
        return sum([row[g] for g in group])

    def move(self, head: int, target: int) -> Change:
        """`head` joins a group."""
        own, itself = self.labels[head], self.similarity[head][head]
        here, there = self.members[own], self.members[target]
        left = self.within[own] - 2 * self._to(head, here) + itself
        joined = self.within[target] + 2 * self._to(head, there) + itself
        before = self.within[own] / len(here) + self.within[target] / len(there)
        after = left / (len(here) - 1) + joined / (len(there) + 1)
        return Change(((head, target),), ((own, left), (target, joined)), after - before)

    def swap(self, one: int, two: int) -> Change:
        """Two heads change places."""
        first, second = self.labels[one], self.labels[two]
        one_out, two_out = self._exchange(one, two), self._exchange(two, one)
        gain = (one_out - self.within[first]) / len(self.members[first])
        gain += (two_out - self.within[second]) / len(self.members[second])
        return Change(((one, second), (two, first)), ((first, one_out), (second, two_out)), gain)

    def _exchange(self, out: int, into: int) -> float:
        """What the group of `out` holds with `into` in its place."""
        group, similar = self.members[self.labels[out]], self.similarity
        rest = self.within[self.labels[out]] - 2 * self._to(out, group) + similar[out][out]
        return rest + 2 * (self._to(into, group) - similar[into][out]) + similar[into][into]

    def apply(self, change: Change) -> None:
        """Carry out a change."""
        for head, group in change.goes:
            self.members[self.labels[head]].remove(head)
            self.members[group].append(head)
            self.labels[head] = group
        for group, within in change.within:
            self.within[group] = within
