"""What an allocation is: what each layer could keep and what that loses in, what each keeps out."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from gqakit.core.budget import fits
from gqakit.errors import BudgetError
from gqakit.grouping_methods.configurable import Configurable

Loss = Literal["none", "objective", "error", "predicted", "corrected", "measured"]
"""What an allocation weighs: nothing, the grouping method's own objective, the merge rule's relative error, or the
divergence that converting one layer alone causes: predicted from gradients, predicted and corrected where it matters by
measuring, or measured on the model."""


@dataclass(frozen=True)
class LayerEntry:
    """Something that gets a number of heads of its own: a layer, or with separate maps the keys or values of one.

    Attributes:
        name: how messages call it.
        num_heads: source KV heads.
        width: what the cache keeps for each of them: 2 vectors for keys and values together, 1 for one of the two; where the
            types of keys and values differ, in the unit of which both are whole numbers.
        counts: the numbers of heads that it may be left with, ascending.
        losses: what each of `counts` loses; empty where the allocation does not ask.
    """

    name: str
    num_heads: int
    width: int
    counts: tuple[int, ...]
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class FrontPoint:
    """One way to spend: the heads that each entry keeps, vectors in the cache per token, and the total loss."""

    counts: tuple[int, ...]
    size: int
    loss: float

    @classmethod
    def of(cls, entries: Sequence[LayerEntry], counts: Sequence[int]) -> FrontPoint:
        """With the size and the loss that follow; an entry without losses loses nothing."""
        kept = list(zip(entries, counts, strict=True))
        size = sum(count * entry.width for entry, count in kept)
        loss = sum(entry.losses[entry.counts.index(count)] for entry, count in kept if entry.losses)
        return cls(tuple(counts), size, loss)


@dataclass(frozen=True)
class Allocation(Configurable, ABC):
    """A way to spend the budget over the layers. One file and one line in `gqakit.planning.allocation` make a new one.

    Like a grouping method it is a frozen dataclass whose fields are its options.
    """

    kind = "allocation"
    summary: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[str]
    formats: ClassVar[str] = "grouped; in uniform one number for all layers"
    loss: ClassVar[Loss]
    """What it weighs unless asked otherwise; `none` for an allocation that looks at no loss."""

    @abstractmethod
    def front(self, entries: Sequence[LayerEntry], *, tied: bool, rng: random.Random) -> list[FrontPoint]:
        """The points worth choosing from, smallest first.

        Args:
            entries: what there is to decide.
            tied: whether all of them must keep the same number.
            rng: the only source of randomness.
        """


def pick(front: Sequence[FrontPoint], entries: Sequence[LayerEntry], kv_ratio: float) -> FrontPoint:
    """The largest point of a front within the budget.

    Args:
        front: smallest first, and each worth its size.
        entries: what the front is about.
        kv_ratio: cache bytes after / before, an upper bound.

    Raises:
        BudgetError: when even the smallest is too large; names the nearest ratio that is met.
    """
    whole = sum(entry.num_heads * entry.width for entry in entries)
    fitting = [point for point in front if fits(point.size, whole, kv_ratio)]
    if not fitting:
        smallest = min(point.size for point in front)
        raise BudgetError(
            f"a kv_ratio of {kv_ratio:.4g} cannot be met: the smallest within the constraints is "
            f"{smallest / whole:.4f} ({smallest} of {whole} key and value heads)"
        )
    return fitting[-1]


def tied_points(entries: Sequence[LayerEntry]) -> list[FrontPoint]:
    """A point for each number of heads that every entry can have."""
    common = set(entries[0].counts).intersection(*(entry.counts for entry in entries))
    return [FrontPoint.of(entries, (count,) * len(entries)) for count in sorted(common)]


def undominated(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """The points, in order of size, that lose less than every smaller one."""
    kept: list[FrontPoint] = []
    for point in sorted(points, key=lambda point: (point.size, point.loss)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return kept
