"""What there is to do for one layer of a plan: functions and data that can be sent to another process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gqakit.core.merging import RULES
from gqakit.grouping_methods.base import GroupingMethod
from gqakit.planning.candidates import Candidate, EntryCandidates, EntryShape
from gqakit.planning.layer_features import LayerReader, Side
from gqakit.planning.layer_loss.predict import Prediction
from gqakit.planning.plan import LayerPlan

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


def look_at_layer(read: LayerReader, task: LayerTask) -> tuple[list[EntryCandidates], list[LayerPlan]]:
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
