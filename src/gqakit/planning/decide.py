"""From what is asked for to a plan: which losses are weighed, which cache types are taken, what the allocation picks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from gqakit.calibration.store import StatisticsFile
from gqakit.models.source import Source
from gqakit.models.spec import ModelSpec
from gqakit.planning.cache_choice import choose_cache, requests
from gqakit.planning.layer_loss.measure import Measurement
from gqakit.planning.layer_loss.weigh import losses_for
from gqakit.planning.options import BudgetOptions, PlanOptions
from gqakit.planning.planner import Planned, make_plan
from gqakit.planning.request import Request
from gqakit.progress import Reporter


def requests_for(
    spec: ModelSpec,
    budget: BudgetOptions,
    options: PlanOptions,
    *,
    measurable: bool,
    predictable: bool,
    workers: int = 1,
) -> list[Request]:
    """The request, or one for each pair of cache types that may be chosen, where `kv_cache` is auto: that is measured.

    Args:
        spec, budget, options: what is asked for, of which model.
        measurable, predictable, workers: see `Request`.

    Raises:
        BudgetError, UsageError: see `Request.check`.
    """
    if options.kv_cache == "auto":
        found = requests(spec, budget, options, measurable=True)
    else:
        found = [Request.check(spec, budget, options, measurable=measurable, predictable=predictable)]
    return [replace(request, workers=workers) for request in found]


def decide(
    source: Source,
    asked: Sequence[Request],
    statistics: StatisticsFile | None,
    measurement: Callable[[], Measurement],
    progress: Reporter,
    *,
    choose: bool,
    whole_front: bool = False,
) -> Planned:
    """The plan, with what it was picked from.

    Args:
        source: the model. asked: see `requests_for`. statistics: the calibration.
        measurement: makes one, where losses are measured. progress: hears of every layer.
        choose: `asked` are of several pairs of cache types, of which the one that loses least is taken.
        whole_front: look at every number of heads even where the budget alone decides.

    Raises:
        BudgetError, PlanError, UsageError: see `make_plan`.
    """
    if choose:
        measure = measurement()
        request = choose_cache(source, asked, statistics, measure)
    else:
        request = asked[0].on(statistics)
        measure = losses_for(request, statistics, measurement)
    with progress("plan", source.spec.num_layers, "layers") as advance:
        return make_plan(source, request, statistics, lambda: advance(1), measure, whole_front=whole_front)
