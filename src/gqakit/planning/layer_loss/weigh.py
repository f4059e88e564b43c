"""What gives the losses that a request weighs: a prediction, a measurement, or one corrected by the other."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gqakit.calibration.store import StatisticsFile
from gqakit.planning.allocation.base import LayerEntry, pick
from gqakit.planning.layer_loss.correct import Correction
from gqakit.planning.layer_loss.measure import Measurement
from gqakit.planning.layer_loss.predict import Prediction
from gqakit.planning.request import Request

if TYPE_CHECKING:
    from gqakit.planning.planner import Measure

LOG = logging.getLogger("gqakit")


def losses_for(
    request: Request, statistics: StatisticsFile | None, measurement: Callable[[], Measurement]
) -> Measure | None:
    """What says what candidates lose; None where the request weighs nothing that depends on the model's output.

    Args:
        request: checked; see `Request.loss`.
        statistics: the calibration.
        measurement: makes one, where it is needed.
    """
    wanted, merge = request.loss, request.options.merge
    if wanted == "measured":
        _say_why(request, statistics)
        return measurement()
    if wanted not in ("predicted", "corrected"):
        return None
    assert statistics is not None  # the request was checked as predictable
    prediction = Prediction(statistics, merge)
    if wanted == "predicted":
        return prediction

    def choose(entries: Sequence[LayerEntry]) -> Sequence[int]:
        rng = random.Random(f"{request.options.seed}/allocation")
        front = request.allocation.front(entries, tied=request.tied, rng=rng)
        return pick(front, entries, request.share).counts

    return Correction(prediction, measurement(), choose)


def _say_why(request: Request, statistics: StatisticsFile | None) -> None:
    """Losses are measured without having been asked for because they cannot be predicted: older statistics."""
    asked = request.options.layer_loss == "measured" or request.predictable
    if not asked and statistics is not None and not statistics.took_gradients:
        LOG.warning(
            "statistics %s hold no gradients, so what layers lose is measured, which takes far longer than to predict it; "
            "`gqakit calibrate` makes statistics that have them",
            statistics.path,
        )
