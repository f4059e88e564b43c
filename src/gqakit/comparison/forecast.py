"""What conversions of a comparison will take before they are scored: foreseen from one run of the source and one layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gqakit.calibration.store import StatisticsFile
from gqakit.comparison.trials import Trial
from gqakit.conversion.options import ConvertOptions
from gqakit.errors import BudgetError
from gqakit.models.source import Source
from gqakit.planning.decide import requests_for
from gqakit.planning.planner import time_of_layers
from gqakit.planning.request import Request
from gqakit.progress import Reporter

_STEP = 512
"""Tokens of a step of repair."""
_ATTENTION = 0.25
"""What a layer's attention takes of it, roughly: repair runs nothing else forwards and backwards."""


def making_times(
    source: Source,
    statistics: StatisticsFile,
    asked: Sequence[tuple[Trial, ConvertOptions]],
    per_token: float,
    progress: Reporter,
) -> list[float | None]:
    """Seconds that planning and repair of each conversion will take; None where its budget cannot be met.

    Looks at the first layer of each, and takes the others to be like it. Within `looking_once` that work is not lost, and a
    way's second budget takes none. What is measured is counted as if nothing were known of it yet.

    Args:
        source: the model. statistics: its calibration. asked: each conversion, and what it is made with.
        per_token: seconds that a run of the source takes for a token. progress: hears of each conversion.
    """
    found: list[float | None] = []
    budgets = Counter(trial.label for trial, _ in asked)
    with progress("look at one layer", len(asked), "conversions") as advance:
        for trial, options in asked:
            try:
                request = _request(source, statistics, options)
            except BudgetError:
                found.append(None)
            else:
                runs = _measured(request, budgets[trial.label]) / 2  # half of the layers run, on average
                tokens = options.measure_tokens * runs / options.workers
                if options.repair:
                    steps = options.repair_steps * _STEP
                    tokens += 2 * options.repair_tokens + 3 * _ATTENTION * steps
                found.append(time_of_layers(source, request, statistics) + per_token * tokens)
            advance(1)
    return found


def _request(source: Source, statistics: StatisticsFile, options: ConvertOptions) -> Request:
    predictable = statistics.has_gradients
    (request,) = requests_for(
        source.spec, options, options, measurable=True, predictable=predictable, workers=options.workers
    )
    return request.on(statistics)


def _measured(request: Request, budgets: int) -> float:
    """Candidates that are measured for one of several budgets, which share what is known."""
    every = sum(len(shape.counts) - 1 for shape in request.shapes)
    return min(request.measured_candidates, every / budgets)
