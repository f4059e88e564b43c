"""What a plan was picked from: the Pareto fronts of the layers and of the model, as a file and as a picture."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gqakit.checkpoint import write_bytes
from gqakit.evaluation.drawing import BASELINE, COLOURS, FOLD, INK, axes_of, figure
from gqakit.planning.allocation import ALLOCATIONS
from gqakit.planning.allocation.base import FrontPoint
from gqakit.planning.candidates import EntryCandidates
from gqakit.planning.planner import Planned


def front_document(planned: Planned) -> dict[str, Any]:
    """Everything as plain data.

    `layers` holds, for every entry and number of heads, the partition, the method's objective, the merge rule's error
    and the loss that was weighed, with the objective of neighbouring groups (GQA) and of the best partition known
    beside it; `model` the points of the allocation, smallest first, one of which the plan is.
    """
    plan = planned.plan
    whole = plan.budget.kv_bytes_per_token_before
    size = _size(planned.candidates)
    return {
        "gqakit_front": 1,
        "source": plan.source.model_dump(mode="json"),
        "method": plan.method,
        "method_options": plan.method_options,
        "allocation": plan.allocation,
        "allocation_options": plan.allocation_options,
        "loss": planned.plan.layer_loss,
        "seed": plan.seed,
        "layers": [_entry(entry) for entry in planned.candidates],
        "model": [
            {
                "kv_ratio": point.size / size,
                "kv_bytes_per_token": round(whole * point.size / size),
                "objective": _objective(planned, point),
                "loss": point.loss if planned.plan.layer_loss != "none" else None,
                "kv_heads": list(point.counts),
            }
            for point in planned.front
        ],
        "references": {
            name: [{"kv_ratio": ratio, "objective": value} for ratio, value in points]
            for name, points in references(planned.candidates).items()
        },
    }


def _entry(entry: EntryCandidates) -> dict[str, Any]:
    losses = dict(zip(entry.entry.counts, entry.entry.losses, strict=False))
    return {
        "layer": entry.layer,
        "side": entry.side,
        "points": [
            {
                "kv_heads": count,
                "objective": candidate.objective,
                "error": candidate.error,
                "loss": losses.get(count),
                **{name: values[count] for name, values in entry.references.items()},
                "labels": list(candidate.partition.labels),
            }
            for count, candidate in sorted(entry.by_count.items())
        ],
    }


def save_front(path: Path, planned: Planned) -> None:
    """Write the fronts as JSON, atomically."""
    write_bytes(path, (json.dumps(front_document(planned), indent=2, allow_nan=False) + "\n").encode())


def references(candidates: Sequence[EntryCandidates]) -> dict[str, list[tuple[float, float]]]:
    """`(kv_ratio, objective)` of the whole model, without the method: neighbouring groups of the same share in every
    layer (GQA; one group is MQA), and the best partitions spent over the layers as well as can be.
    """
    size = _size(candidates)
    entries = [replace(entry.entry, losses=_in_order(entry, "neighbour")) for entry in candidates]
    uniform = ALLOCATIONS["uniform"].front(entries, tied=False, rng=random.Random(0))
    entries = [replace(entry.entry, losses=_in_order(entry, "best")) for entry in candidates]
    best = ALLOCATIONS["knapsack"].front(entries, tied=False, rng=random.Random(0))
    return {
        "neighbour": [(point.size / size, point.loss) for point in uniform],
        "best": [(point.size / size, point.loss) for point in best],
    }


def _in_order(entry: EntryCandidates, reference: str) -> tuple[float, ...]:
    return tuple(entry.references[reference][count] for count in entry.entry.counts)


def _size(candidates: Sequence[EntryCandidates]) -> int:
    return sum(entry.entry.num_heads * entry.entry.width for entry in candidates)


def _objective(planned: Planned, point: FrontPoint) -> float:
    """What the method makes of a point; where the losses are its objective, their total."""
    if planned.plan.layer_loss == "objective":
        return point.loss
    return sum(
        entry.by_count[count].objective for entry, count in zip(planned.candidates, point.counts, strict=True)
    )


def plot_front(path: Path, planned: Planned) -> None:
    """Draw the front of the layer with the most to lose, and of the model, with GQA, MQA and the optimum on both.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    steepest = max(
        planned.candidates,
        key=lambda entry: max(candidate.objective for candidate in entry.by_count.values()),
    )
    method = planned.plan.method
    with figure(path, columns=2, made_by=f"gqakit plan {planned.plan.source.name}") as (left, right):
        counts = sorted(steepest.by_count)
        layer = {
            name: [(float(count), values[count]) for count in counts]
            for name, values in steepest.references.items()
        }
        own = [(float(count), steepest.by_count[count].objective) for count in counts]
        _draw(left, layer, own, method)
        axes_of(left, f"Stage 1: {steepest.entry.name}", "KV heads", f"objective of {method}")
        left.locator_params(axis="x", integer=True)
        size = _size(planned.candidates)
        model = [(p.size / size, _objective(planned, p)) for p in planned.front]
        _draw(right, references(planned.candidates), model, f"{method}, {planned.plan.allocation}")
        # By its heads: the ratio of a plan also counts the types of its cache.
        counts = tuple(len(set(_groups(planned, entry))) for entry in planned.candidates)
        at = next(
            where for where, point in zip(model, planned.front, strict=True) if tuple(point.counts) == counts
        )
        right.plot(*at, "*", color=INK, markersize=13, label="this plan", zorder=5)
        axes_of(right, "The whole model", "KV cache, after / before", "")
        right.legend(frameon=False)


def _groups(planned: Planned, entry: EntryCandidates) -> Sequence[int]:
    """The group of each head of a layer entry in the plan."""
    layer = planned.plan.layers[entry.layer]
    return layer.value if entry.side == "value" else layer.key


def _draw(
    axes: Any,
    known: Mapping[str, Sequence[tuple[float, float]]],
    own: Sequence[tuple[float, float]],
    name: str,
) -> None:
    neighbour = known["neighbour"]
    axes.plot(*zip(*neighbour, strict=True), "s--", color=BASELINE, label="GQA (neighbours)", markersize=4)
    axes.plot(*neighbour[0], "D", color=BASELINE, label="MQA", markersize=7)
    axes.plot(
        *zip(*known["best"], strict=True),
        "-",
        color=FOLD,
        label=_BEST,
        linewidth=3,
        alpha=0.5,
    )
    axes.plot(*zip(*own, strict=True), "o-", color=COLOURS[0], label=name, markersize=4, linewidth=1)


_BEST = "optimum, or best known"
