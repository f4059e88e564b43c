"""What there is to do for one layer of a plan: functions and data that can be sent to another process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from gqakit.core.merging import RULES
from gqakit.grouping_methods.base import GroupingMethod
from gqakit.planning.candidates import Candidate, EntryCandidates, EntryShape
from gqakit.planning.layer_features import LayerReader, Side
from gqakit.planning.layer_loss.predict import Prediction
from gqakit.planning.plan import LayerPlan
from gqakit.planning.workers import each

Chosen = tuple[int, Side, Candidate]
"""A layer, what is grouped there, and how."""


@dataclass(frozen=True)
class LayerTask:
    """Everything that decides the candidates of one layer; all of it can be sent to another process."""

    shapes: tuple[EntryShape, ...]
    method: GroupingMethod
    merge: str
    seed: int
    compare: bool
    predict: Prediction | None = None

    @property
    def settings(self) -> tuple[object, ...]:
        """What tells it from other tasks on the same model and statistics."""
        predicted = self.predict is not None  # from those statistics
        return repr(self.shapes), repr(self.method), self.merge, self.seed, self.compare, predicted


LookedAt = tuple[list[EntryCandidates], list[LayerPlan]]
_kept: ContextVar[dict[tuple[object, ...], LookedAt] | None] = ContextVar("kept", default=None)


@contextmanager
def looking_once() -> Iterator[None]:
    """Within it, plans that differ in their budget alone look at each layer once: its candidates are the same for all."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def look_at_layers(read: LayerReader, tasks: Sequence[LayerTask], workers: int) -> Iterator[LookedAt]:
    """What there is to choose from in each layer, in order; see `look_at_layer` and `looking_once`."""
    kept = _kept.get()
    if kept is None:
        yield from each(read, look_at_layer, tasks, workers)
        return
    statistics = None if read.statistics is None else read.statistics.fingerprint
    model = read.source.fingerprint, str(read.source.spec.stacks), statistics, read.behind_norm
    keys = [(*model, *task.settings) for task in tasks]
    missing = [task for task, key in zip(tasks, keys, strict=True) if key not in kept]
    found = each(read, look_at_layer, missing, workers)
    for key in keys:
        if key not in kept:
            kept[key] = next(found)
        yield kept[key]


def look_at_layer(read: LayerReader, task: LayerTask) -> LookedAt:
    """The candidates of a layer; and the layer of the plan, where there is nothing to choose from."""
    here = [
        shape.candidates(read, task.method, RULES[task.merge], task.seed, compare=task.compare)
        for shape in task.shapes
    ]
    if task.predict is not None:
        here = task.predict.settled(here, read)
    if not here or any(len(entry.by_count) > 1 for entry in here):
        return here, []
    chosen: tuple[Chosen, ...] = tuple((e.layer, e.side, c) for e in here for c in e.by_count.values())
    return here, [settled_layer(read, (chosen, task.merge))]  # while a large layer is in memory


def settled_layer(read: LayerReader, task: tuple[tuple[Chosen, ...], str]) -> LayerPlan:
    """One layer of the plan: what was chosen for its entries, with the error that the merge settles at."""
    entries, merge = task
    rule, chosen = RULES[merge], {side: candidate for _, side, candidate in entries}
    key, value = (chosen.get(side, chosen.get("both")) for side in ("key", "value"))
    assert key is not None
    assert value is not None
    gaps = [candidate.gap for candidate in chosen.values() if candidate.gap is not None]

    def relative(side: Literal["key", "value"], candidate: Candidate) -> float:
        if candidate.settled is not None:
            known = candidate.settled
            return float(f"{known.key_error if side == 'key' else known.value_error:.6g}")
        (heads,) = read(entries[0][0]).sides(side)
        error = sum(rule.error(heads.select(group)) for group in candidate.partition.groups)
        return float(f"{error / max(float(heads.energy().sum()), 1e-30):.6g}")

    return LayerPlan(
        key=key.partition.labels,
        value=value.partition.labels,
        key_error=relative("key", key),
        value_error=relative("value", value),
        gap=float(f"{max(gaps):.4g}") if len(gaps) == len(chosen) else None,
    )
