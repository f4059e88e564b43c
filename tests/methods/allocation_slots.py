"""Small allocations and all ways to spend on them."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from gqakit.planning.allocation.base import LayerEntry


def losses_fall(name: str, num_heads: int, counts: list[int]) -> LayerEntry:
    """A slot that loses `1/n − 1/heads` with `n` heads left."""
    return LayerEntry(name, num_heads, 2, tuple(counts), tuple(1 / n - 1 / num_heads for n in counts))


@st.composite
def _slot(draw: DrawFn) -> LayerEntry:
    heads = draw(st.integers(1, 5))
    counts = sorted(draw(st.sets(st.integers(1, heads), min_size=1)))
    losses = draw(st.lists(st.floats(0, 10), min_size=len(counts), max_size=len(counts)))
    return LayerEntry("slot", heads, draw(st.integers(1, 2)), tuple(counts), tuple(losses))


def slots(most: int = 4) -> SearchStrategy[list[LayerEntry]]:
    """One to `most` slots, with losses in no order."""
    return st.lists(_slot(), min_size=1, max_size=most)


def brute_force(slots: list[LayerEntry]) -> dict[int, float]:
    """The least total loss of every size that is possible."""
    best: dict[int, float] = {}
    for choice in itertools.product(*(range(len(slot.counts)) for slot in slots)):
        chosen = list(zip(slots, choice, strict=True))
        size = sum(slot.counts[index] * slot.width for slot, index in chosen)
        loss = sum(slot.losses[index] for slot, index in chosen)
        best[size] = min(loss, best.get(size, loss))
    return best
