"""`kv_cache=auto`: of an engine's types the pair that, with the heads that a budget then leaves, loses least."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gqakit.calibration.store import StatisticsFile
from gqakit.core.basis import Readers, rebased
from gqakit.core.budget import Budget
from gqakit.core.cache_types import CachePair
from gqakit.core.rounding_basis import rounding_basis
from gqakit.errors import BudgetError, UsageError
from gqakit.models.engine_caches import FULL, offered
from gqakit.models.layers import parameters_of_layer, tensors_of_layer
from gqakit.models.outputs import Output, run
from gqakit.models.rounding import rounded_cache
from gqakit.models.running import load_model
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.planning.allocation.base import pick
from gqakit.planning.layer_features import LayerReader
from gqakit.planning.layer_loss.measure import Measurement
from gqakit.planning.options import BudgetOptions, PlanOptions
from gqakit.planning.planner import make_plan
from gqakit.planning.request import Request

STEPS = logging.getLogger("gqakit.steps")


@dataclass(frozen=True)
class Offer:
    """A pair that fits the budget.

    Attributes:
        request: with the pair; its `share` is what is left of the heads.
        rounding: divergence from the source when all keys and values are rounded, and nothing is merged.
        merging: what the merges that it takes lose.
    """

    request: Request
    rounding: float
    merging: float

    @property
    def loss(self) -> float:
        """Both together: measured apart, and added up as losses of layers are."""
        return self.rounding + self.merging


def requests(
    spec: ModelSpec, budget: BudgetOptions, options: PlanOptions, *, measurable: bool
) -> list[Request]:
    """For each of the engine's pairs that can meet the budget its request, the most bytes first.

    Raises:
        BudgetError: none can; names the nearest budget that the smallest types reach.
        UsageError: a budget in heads, which types have no part in.
    """
    assert options.engine is not None  # the options have checked it
    if budget.kv_heads is not None:
        raise UsageError(
            "`kv_cache=auto` spends bytes on heads and types; give a budget in bytes, such as `kv_ratio`"
        )
    found: list[Request] = []
    problem: BudgetError | None = None
    for pair in offered(options.engine, spec.head_dim):
        try:
            chosen = options.changed(kv_cache=pair.name)
            found.append(Request.check(spec, budget, chosen, measurable=measurable))
        except BudgetError as error:
            problem = error
    if not found:
        raise problem or BudgetError("no type of cache holds such heads")
    return found


def choose_cache(
    source: Source,
    fitting: Sequence[Request],
    statistics: StatisticsFile | None,
    measure: Measurement,
) -> Request:
    """The request of the pair that loses least.

    Args:
        source: the model. fitting: of `requests`.
        statistics: its calibration.
        measure: runs the model on its data.
    """
    rounding = _rounding(source, [request.types for request in fitting], statistics, measure)
    merging = _merging(source, fitting, statistics, measure)
    offers = [Offer(*each) for each in zip(fitting, rounding, merging, strict=True)]
    best = min(offers, key=lambda offer: offer.loss)
    for offer in offers:
        name = FULL if offer.request.types is None else offer.request.types.name
        STEPS.info(
            "%s %s: rounding loses %.4f, merging to %.0f %% of the heads %.4f",
            "*" if offer is best else " ",
            name,
            offer.rounding,
            100 * offer.request.share,
            offer.merging,
        )
    return best.request


def _rounding(
    source: Source,
    pairs: Sequence[CachePair | None],
    statistics: StatisticsFile | None,
    measure: Measurement,
) -> list[float]:
    """How far the output moves in each pair, with the heads in the basis that is chosen for it."""
    spec, batches = source.spec, measure.bench.batches
    model, read = load_model(source.checkpoint, device=measure.bench.device), LayerReader(source, statistics)
    found: list[float] = []
    with torch.inference_mode():
        expected = [Output.of(run(model, batch)) for batch in batches]
        with measure.progress("measure types of the cache", len(pairs), "types") as advance:
            for pair in pairs:
                if pair is None:
                    found.append(0.0)
                else:
                    for layer in range(spec.num_layers):
                        _move(model, read, layer, pair)
                    with rounded_cache(model, spec, pair):
                        moved = [
                            known.divergence(Output.of(run(model, batch)))
                            for known, batch in zip(expected, batches, strict=True)
                        ]
                    found.append(sum(moved) / len(moved))
                advance(1)
    return found


def _move(model: torch.nn.Module, read: LayerReader, layer: int, pair: CachePair) -> None:
    """Put one layer of a running source into the basis for a pair."""
    features, spec = read(layer), read.source.spec
    reads = tuple(head * spec.key_heads[layer] // spec.num_heads for head in range(spec.num_heads))
    readers = Readers(reads, reads)
    basis = rounding_basis(features.weights, readers, features.statistics, spec.channels, pair)
    tensors = tensors_of_layer(spec, layer, rebased(features.weights, readers, basis))
    parameters = parameters_of_layer(spec, model, layer)  # pyright: ignore[reportArgumentType]
    for name, tensor in tensors.items():
        if name in parameters:
            parameters[name].copy_(tensor)


def _merging(
    source: Source, fitting: Sequence[Request], statistics: StatisticsFile | None, measure: Measurement
) -> list[float]:
    """What merging loses within each request's share of the heads; candidates are the same for all, and measured once."""
    if all(request.share >= 1 for request in fitting):
        return [0.0] * len(fitting)
    spending = fitting[-1].options.changed(allocation="knapsack", layer_loss="auto", kv_cache=FULL)
    # For its candidates alone.
    first = replace(fitting[-1], budget=Budget(1.0, "kv_ratio 1"), options=spending)
    planned = make_plan(source, first, statistics, measure=measure, whole_front=True)
    found: list[float] = []
    for request in fitting:
        entries = [
            replace(shape.entry, losses=known.entry.losses)
            for shape, known in zip(request.shapes, planned.candidates, strict=True)
        ]
        front = first.allocation.front(entries, tied=request.tied, rng=random.Random(0))
        found.append(pick(front, entries, request.share).loss if request.share < 1 else 0.0)
    return found
